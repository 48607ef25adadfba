"""Losses against lightly (Meta's official formulas, float32) and against float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrain.heads import ProjectionHead
from pretrain.losses import koleo_loss, mask_weights
from pretrain.prototypes import TargetSums, cross_views, prototype_loss, same_rows
from pretrain.targets import SoftmaxCentering, sinkhorn_knopp
from tests.workers import run_workers

T_STUDENT, T_TEACHER = 0.1, 0.04


def lightly_loss():
    return pytest.importorskip(
        "lightly.loss", reason="lightly is the oracle of the losses; install the test extra"
    )


def logits(*shape, seed=0, std=0.3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    value = function(x)
    value.backward()
    return value.detach(), x.grad


def assert_equal_losses(ours, theirs, x):
    """Value and gradient within 1e-6 relative (gradient: of its largest entry)."""
    (a, grad_a), (b, grad_b) = value_and_gradient(ours, x), value_and_gradient(theirs, x)
    assert abs(a - b) <= 1e-6 * abs(b)
    assert (grad_a - grad_b).abs().max() <= 1e-6 * grad_b.abs().max()


def targets_of(teacher_logits, temperature=T_TEACHER):
    """Softmax targets, as lightly's center of zero gives them."""
    return SoftmaxCentering(teacher_logits.shape[-1])(teacher_logits, temperature)


def loss_of_logits(student, targets, how):
    """The fused loss with the identity for prototypes: codes are logits."""
    return prototype_loss(student, torch.eye(student.shape[-1]), targets, how, T_STUDENT)[0]


def dino_loss(student, targets):
    how = cross_views(student.shape[1], len(student), student.device)
    return loss_of_logits(student.flatten(0, 1), targets, how)


def ibot_loss(student, targets, masks):
    return loss_of_logits(student, targets, same_rows(mask_weights(masks) / len(masks)))


def sinkhorn_float64(scores, temperature, iterations=3):
    """The loop of SwAV and DINOv2 on exp(), rewritten with logsumexp in float64."""
    q = scores.double() / temperature
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()


class TestDino:
    @pytest.mark.parametrize("num_local", [0, 1, 6])
    def test_equals_lightly(self, num_local):
        loss = lightly_loss().DINOLoss(
            50, teacher_temp=T_TEACHER, student_temp=T_STUDENT, warmup_teacher_temp=T_TEACHER
        )
        teacher = logits(2, 8, 50, seed=1)
        targets = targets_of(teacher.flatten(0, 1))
        assert_equal_losses(
            lambda x: dino_loss(x, targets),
            lambda x: (loss.center.zero_(), loss(list(teacher), list(x)))[1],
            logits(2 + num_local, 8, 50, seed=2),
        )

    def test_order_of_images_does_not_matter(self):
        student, teacher = logits(5, 8, 20), logits(2, 8, 20, seed=1)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        expected = dino_loss(student, targets_of(teacher.flatten(0, 1)))
        got = dino_loss(student[:, order], targets_of(teacher[:, order].flatten(0, 1)))
        torch.testing.assert_close(got, expected)

    def test_perfect_student_reaches_the_entropy_of_the_targets(self):
        targets = targets_of(logits(1, 8, 20).expand(2, 8, 20).flatten(0, 1))
        logs = targets.logs(slice(None))
        entropy = -(logs.exp() * logs).sum(-1).mean()
        perfect = (logs * T_STUDENT).unflatten(0, (2, 8))
        torch.testing.assert_close(dino_loss(perfect, targets), entropy)


class TestIbot:
    @staticmethod
    def masks():
        masks = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.4
        masks[2] = False  # an image that is not masked
        return masks

    def test_equals_lightly(self):
        masks = self.masks()
        teacher = logits(int(masks.sum()), 50, seed=1)
        loss = lightly_loss().IBOTPatchLoss(50, teacher_temp=T_TEACHER, student_temp=T_STUDENT)
        targets = targets_of(teacher)
        assert_equal_losses(
            lambda x: ibot_loss(x, targets, masks),
            lambda x: (loss.center.center.zero_(), loss(teacher, x, masks))[1],
            logits(int(masks.sum()), 50, seed=2),
        )

    def test_weights_sum_to_one_for_each_masked_image(self):
        masks = self.masks()
        assert mask_weights(masks).sum().item() == pytest.approx(5)

    def test_no_masked_token_gives_zero_with_a_gradient(self):
        student = torch.zeros(0, 50, requires_grad=True)
        masks = torch.zeros(4, 2, 2, dtype=torch.bool)
        loss = ibot_loss(student, targets_of(torch.zeros(0, 50)), masks)
        loss.backward()
        assert loss == 0
        assert student.grad is not None


class TestPrototypeLoss:
    """The fused loss and its hand-made gradients against autograd on whole arrays."""

    @staticmethod
    def plain(codes, prototypes, targets, how):
        unit = torch.nn.functional.normalize(prototypes, dim=-1)
        logs = torch.log_softmax(codes @ unit.mT / T_STUDENT, -1)
        return -((how.spread(targets.dense()) * logs).sum(-1) * how.weights).sum()

    @staticmethod
    def parts(seed=0, num_prototypes=700):
        codes = torch.nn.functional.normalize(logits(40, 16, seed=seed), dim=-1)
        return codes, logits(num_prototypes, 16, seed=seed + 1), targets_of(
            logits(16, num_prototypes, seed=seed + 2)
        )  # fmt: skip

    @staticmethod
    def gradients(loss, codes, prototypes):
        leaves = codes.double().requires_grad_(), prototypes.double().requires_grad_()
        leaves = [x.to(codes.dtype).detach().requires_grad_() for x in leaves]
        value = loss(*leaves)
        value.backward()
        return value.detach(), *(x.grad for x in leaves)

    @pytest.mark.parametrize("chunk", [64, 699, 4096])
    @pytest.mark.parametrize("kept", [0, 2**26])
    def test_chunks_change_nothing(self, monkeypatch, chunk, kept):
        monkeypatch.setattr("pretrain.targets.CHUNK", chunk)
        monkeypatch.setattr("pretrain.prototypes.KEPT_LOGITS", kept)
        codes, prototypes, targets = self.parts()
        how = cross_views(8, 5, codes.device)
        expected = self.gradients(lambda x, w: self.plain(x, w, targets, how), codes, prototypes)
        got = self.gradients(
            lambda x, w: prototype_loss(x, w, targets, how, T_STUDENT)[0], codes, prototypes
        )
        for ours, theirs in zip(got, expected, strict=True):
            assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()

    def test_sums_are_those_of_the_dense_targets(self):
        codes, prototypes, targets = self.parts()
        how = cross_views(8, 5, codes.device)
        _, got = prototype_loss(codes, prototypes, targets, how, T_STUDENT)
        expected = TargetSums.of(targets.dense())
        torch.testing.assert_close(got.entropy, expected.entropy, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.total, expected.total)
        assert torch.equal(got.largest, expected.largest)

    def test_length_of_prototypes_does_not_matter(self):
        codes, prototypes, targets = self.parts()
        how = cross_views(8, 5, codes.device)
        losses = [
            prototype_loss(codes, factor * prototypes, targets, how, T_STUDENT)[0]
            for factor in (1.0, 7.0)
        ]
        torch.testing.assert_close(*losses)

    def test_bfloat16_autocast_keeps_value_and_direction(self):
        codes, prototypes, targets = self.parts()
        how = cross_views(8, 5, codes.device)
        expected = self.gradients(
            lambda x, w: prototype_loss(x, w, targets, how, T_STUDENT)[0], codes, prototypes
        )
        with torch.autocast("cpu", torch.bfloat16):
            got = self.gradients(
                lambda x, w: prototype_loss(x, w, targets, how, T_STUDENT)[0], codes, prototypes
            )
        assert got[0] == pytest.approx(expected[0].item(), rel=1e-2)
        for ours, theirs in zip(got[1:], expected[1:], strict=True):
            assert ours.dtype == torch.float32
            cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
            assert cosine > 0.999


class TestKoleo:
    def test_equals_lightly_when_one_group_holds_all(self):
        assert_equal_losses(
            lambda x: koleo_loss(x, 16), lightly_loss().KoLeoLoss(), logits(16, 32, std=1.0)
        )

    def test_is_the_mean_over_groups_of_lightly(self):
        theirs = lightly_loss().KoLeoLoss()
        assert_equal_losses(
            lambda x: koleo_loss(x, 4),
            lambda x: torch.stack([theirs(part) for part in x.split(4)]).mean(),
            logits(16, 32, std=1.0),
        )

    def test_shares_of_workers_average_to_the_whole(self):
        x = logits(16, 32, std=1.0)
        shares = torch.stack([koleo_loss(part, 4) for part in x.chunk(2)]).mean()
        torch.testing.assert_close(shares, koleo_loss(x, 4))

    def test_order_within_a_group_does_not_matter(self):
        x = logits(8, 16, std=1.0)
        torch.testing.assert_close(koleo_loss(x.flip(0), 8), koleo_loss(x, 8))

    @pytest.mark.parametrize("sigma", [1e-1, 1e-2, 1e-3])
    def test_bfloat16_autocast_keeps_the_gradient_on_near_duplicates(self, sigma):
        x = logits(1, 128, std=1.0) + logits(32, 128, seed=1, std=sigma)

        def under_autocast(features):
            with torch.autocast("cpu", torch.bfloat16):
                return koleo_loss(features, 8)

        _, expected = value_and_gradient(lambda features: koleo_loss(features, 8), x)
        _, got = value_and_gradient(under_autocast, x)
        cosine = torch.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
        assert cosine >= 0.999

    def test_exact_duplicates_stay_finite_and_pull_nothing(self):
        value, gradient = value_and_gradient(
            lambda x: koleo_loss(x, 8), logits(1, 16, std=1.0).repeat(8, 1)
        )
        assert math.isfinite(value)
        assert gradient.abs().max() == 0

    @pytest.mark.parametrize(("rows", "group"), [(6, 4), (4, 1)])
    def test_broken_groups_are_refused(self, rows, group):
        with pytest.raises(ValueError, match="groups"):
            koleo_loss(logits(rows, 8), group)


class TestSinkhorn:
    @pytest.mark.parametrize("std", [0.3, 1.0, 4.0])
    def test_equals_a_float64_loop_and_stays_finite(self, std):
        scores = logits(128, 512, std=std)
        got = sinkhorn_knopp(scores, T_TEACHER).dense()
        assert got.isfinite().all()
        assert (got - sinkhorn_float64(scores, T_TEACHER)).abs().max() <= 1e-5

    def test_rows_sum_to_one_and_columns_share_the_rows(self):
        probs = sinkhorn_knopp(logits(64, 16), 0.1, iterations=50).dense()
        torch.testing.assert_close(probs.sum(1), torch.ones(64))
        torch.testing.assert_close(probs.sum(0), torch.full((16,), 4.0), atol=1e-3, rtol=0)

    def test_order_of_rows_and_of_prototypes_does_not_matter(self):
        scores = logits(32, 16)
        rows, columns = torch.randperm(32), torch.randperm(16)
        expected = sinkhorn_knopp(scores, T_TEACHER).dense()[rows][:, columns]
        got = sinkhorn_knopp(scores[rows][:, columns], T_TEACHER).dense()
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)

    def test_no_rows_give_no_rows(self):
        assert sinkhorn_knopp(torch.zeros(0, 16), T_TEACHER).dense().shape == (0, 16)


class TestSoftmaxCentering:
    def test_equals_lightly_over_steps(self):
        loss = lightly_loss().DINOLoss(
            50, teacher_temp=T_TEACHER, student_temp=T_STUDENT, warmup_teacher_temp=T_TEACHER
        )
        centering = SoftmaxCentering(50, momentum=0.9)
        for seed in range(4):
            teacher, student = logits(2, 8, 50, seed=seed), logits(4, 8, 50, seed=seed + 10)
            targets = centering(teacher.flatten(0, 1), T_TEACHER)
            expected = loss(list(teacher), list(student))
            got = dino_loss(student, targets)
            assert abs(got - expected) <= 1e-6 * abs(expected)
        torch.testing.assert_close(centering.center, loss.center[0, 0])

    def test_no_rows_leave_the_center(self):
        centering = SoftmaxCentering(5)
        centering(logits(4, 5), T_TEACHER)
        before = centering.center.clone()
        centering(torch.zeros(0, 5), T_TEACHER)
        assert torch.equal(centering.center, before)

    def test_a_diverged_teacher_leaves_the_center(self):
        centering = SoftmaxCentering(5)
        centering(torch.full((4, 5), math.nan), T_TEACHER)
        assert torch.equal(centering.center, torch.zeros(5))


class TestWorkers:
    """Targets of two processes equal those of one on the concatenated batch."""

    SPLITS = ((16, 16), (20, 12), (32, 0))

    def test_targets_equal_those_of_one_process(self, tmp_path):
        scores = logits(32, 24, std=1.0)
        centering = SoftmaxCentering(24)
        expected = centering(scores, T_TEACHER).dense()
        found = run_workers(_targets_of_a_share, tmp_path, self.SPLITS, scores)
        whole = sinkhorn_knopp(scores, T_TEACHER).dense()
        for parts in zip(*found, strict=True):
            got = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            np.testing.assert_allclose(got["sinkhorn"], whole, atol=1e-6, rtol=1e-4)
            np.testing.assert_allclose(got["softmax"], expected, atol=1e-5, rtol=1.3e-6)
            np.testing.assert_allclose(
                got["center"], centering.center.expand(2, -1), atol=1e-5, rtol=1.3e-6
            )


def _targets_of_a_share(splits, scores):
    results = []
    for rows in splits:
        share = scores.split(rows)[dist.get_rank()]
        centering = SoftmaxCentering(scores.shape[1])
        results.append(
            {
                "sinkhorn": sinkhorn_knopp(share, T_TEACHER).dense().numpy(),
                "softmax": centering(share, T_TEACHER).dense().numpy(),
                "center": centering.center[None].numpy(),
            }
        )
    return results


class TestHead:
    def test_logits_are_cosines(self):
        head = ProjectionHead(16, 32, hidden=24, bottleneck=8)
        found = head(logits(10, 16, std=100.0))
        assert found.shape == (10, 32)
        assert found.abs().max() <= 1 + 1e-6

    def test_equals_the_head_of_lightly(self):
        """The same weights give the same logits; norm_last_layer fixes lightly's gain to 1."""
        heads = pytest.importorskip(
            "lightly.models.modules.heads", reason="lightly is the oracle; install the test extra"
        )
        theirs = heads.DINOProjectionHead(16, 24, 8, 32, batch_norm=False, norm_last_layer=True)
        ours = ProjectionHead(16, 32, hidden=24, bottleneck=8)
        names = ["0", "2", "4"]
        linears = [layer for layer in theirs.layers if isinstance(layer, torch.nn.Linear)]
        for name, layer in zip(names, linears, strict=True):
            ours.mlp[int(name)].load_state_dict(layer.state_dict())
        ours.prototypes.weight.data = theirs.last_layer.weight.data.clone()
        x = logits(10, 16, std=1.0)
        torch.testing.assert_close(ours(x), theirs(x))

    def test_can_be_copied_after_a_forward_pass(self):
        import copy

        head = ProjectionHead(16, 32, hidden=24, bottleneck=8)
        x = logits(4, 16)
        expected = head(x)
        assert torch.equal(copy.deepcopy(head)(x), expected)

    def test_no_rows_still_give_every_parameter_a_gradient(self):
        head = ProjectionHead(16, 32, hidden=24, bottleneck=8)
        loss, _ = prototype_loss(
            head.codes(torch.zeros(0, 16)), head.prototypes.weight, targets_of(torch.zeros(0, 32)),
            same_rows(torch.zeros(0)), T_STUDENT,
        )  # fmt: skip
        loss.backward()
        assert all(np.all(p.grad.numpy() == 0) for p in head.parameters())
