"""The packed pass against the plain one, crop size by crop size."""

from __future__ import annotations

import pytest
import torch

from core_mri.models import create_model
from pretrain.linear import linear, onednn_takes, product
from pretrain.packed import Crops, encode_packed


def encoder_of(**changes):
    torch.manual_seed(0)
    settings = {"image_size": 32, "layer_scale": 0.3, "num_registers": 2} | changes
    encoder = create_model("vit_micro_patch8", **settings).train()
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and positions that are not zero
            parameter += 0.02 * torch.randn_like(parameter)
    return encoder


def crops(num_global=6, num_local=8):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(num_global, 4, 4, generator=generator) < 0.3
    mask[2] = False
    return [
        Crops(
            torch.rand(num_global, 1, 32, 32, generator=generator),
            mask,
            mask.flatten().nonzero()[:, 0],
        ),
        Crops(torch.rand(num_local, 1, 16, 16, generator=generator)),
    ]


def plain(encoder, groups):
    """What `encode_packed` must give without stochastic depth."""
    found = []
    for group in groups:
        cls, patches = encoder(group.images, group.mask)
        wanted = torch.tensor([], dtype=torch.int64) if group.wanted is None else group.wanted
        found.append((cls, patches.flatten(0, 2)[wanted]))
    return found


def flat(parts):
    return torch.cat([tensor.flatten() for pair in parts for tensor in pair])


class TestWithoutStochasticDepth:
    @pytest.mark.parametrize("changes", [{}, {"layer_scale": 0.0, "num_registers": 0}])
    def test_values_and_gradients_are_those_of_the_plain_encoder(self, changes):
        encoder, groups = encoder_of(**changes), crops()
        weights = torch.randn(len(flat(plain(encoder, groups))))
        results = []
        for function in (plain, encode_packed):
            encoder.zero_grad()
            out = flat(function(encoder, groups))
            (out * weights).sum().backward()
            gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
            results.append((out.detach(), gradients))
        (expected, theirs), (got, ours) = results
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name

    def test_rotary_positions_of_dinov3(self):
        """Blocks of another kind: rotated queries and keys, no bias of keys, other LayerScale."""
        encoder, groups = encoder_of(positions="rotary", num_registers=4), crops()
        weights = torch.randn(len(flat(plain(encoder, groups))))
        results = []
        for function in (plain, encode_packed):
            encoder.zero_grad()
            out = flat(function(encoder, groups))
            (out * weights).sum().backward()
            results.append([out.detach(), *(p.grad.clone() for p in encoder.parameters())])
        for expected, got in zip(*results, strict=True):
            assert (got - expected).abs().max() <= 2e-5 * expected.abs().max().clamp_min(1e-3)
        turned = [group._replace(images=group.images.mT) for group in groups]
        assert not torch.allclose(flat(encode_packed(encoder, turned)), results[1][0], atol=1e-2)

    def test_groups_do_not_see_each_other(self):
        encoder, groups = encoder_of(), crops()
        together = encode_packed(encoder, groups)
        alone = [encode_packed(encoder, [group])[0] for group in groups]
        torch.testing.assert_close(flat(together), flat(alone), atol=1e-5, rtol=1e-5)

    def test_crops_do_not_see_each_other(self):
        encoder, groups = encoder_of(), crops()
        expected = encode_packed(encoder, groups)[1].cls
        changed = groups[1].images.clone()
        changed[3] = 0
        got = encode_packed(encoder, [groups[0], Crops(changed)])[1].cls
        differs = (got - expected).abs().amax(1) > 1e-4
        assert differs.nonzero().flatten().tolist() == [3]

    def test_no_wanted_patch(self):
        encoded = encode_packed(encoder_of(), [Crops(crops()[0].images)])[0]
        assert encoded.cls.shape == (6, 128)
        assert encoded.patches.shape == (0, 128)


class TestStochasticDepth:
    def test_expectation_is_the_plain_branch(self):
        """One block, linear after its branches: the mean over many draws is the undropped value."""
        encoder, groups = encoder_of(depth=2, layer_scale=0.01), crops()
        encoder.vit.norm = torch.nn.Identity()  # else the mean of norms is not the norm of means
        torch.manual_seed(3)
        with torch.no_grad():
            expected = flat(plain(encoder, groups))
            draws = torch.stack(
                [flat(encode_packed(encoder, groups, drop_path=0.4)) for _ in range(500)]
            )
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-5).all()
        assert draws.std(0).max() > 1e-3

    def test_dropped_crops_are_not_computed(self, monkeypatch):
        encoder, groups = encoder_of(), crops()
        sizes = []

        def counted(x, weight, bias=None):
            sizes.append(len(x))
            return linear(x, weight, bias)

        monkeypatch.setattr("pretrain.packed.linear", counted)
        encode_packed(encoder, groups, drop_path=0.5)
        tokens = 3 * (16 + 3) + 4 * (4 + 3)  # half of the crops, with two registers
        assert set(sizes[:-3]) == {tokens}
        assert max(sizes[-3:]) < tokens  # the last block goes on with wanted tokens alone

    def test_a_crop_is_left_out_as_a_whole_and_the_others_are_scaled_up(self):
        encoder = encoder_of(depth=1)
        images = crops()[1].images
        start = encoder.embed(images, None)[0][:, 0]
        encoder.vit.norm = torch.nn.Identity()
        encoder.vit.blocks[0].ls2.gamma.data.zero_()  # attention alone
        whole = encoder(images).cls - start
        got = encode_packed(encoder, [Crops(images)], drop_path=0.5)[0].cls - start
        kept = got.abs().amax(1) > 0
        assert kept.sum() == 4
        torch.testing.assert_close(got[kept], 2 * whole[kept], atol=1e-5, rtol=1e-4)

    def test_same_seed_same_result(self):
        encoder, groups = encoder_of(), crops()
        results = []
        for _ in range(2):
            torch.manual_seed(5)
            results.append(flat(encode_packed(encoder, groups, drop_path=0.3)))
        assert torch.equal(*results)


class TestBfloat16:
    def test_is_near_float32(self):
        encoder, groups = encoder_of(), crops()
        expected = flat(encode_packed(encoder, groups))
        with torch.autocast("cpu", torch.bfloat16):
            got = flat(encode_packed(encoder, groups))
        cosine = torch.cosine_similarity(got.float(), expected, dim=0)
        assert cosine > 0.999


class TestLinear:
    def test_equals_float64(self):
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(70, 33, generator=generator), torch.randn(20, 33)
        bias = torch.randn(20)
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        doubles = [tensor.detach().double().requires_grad_() for tensor in leaves]
        assert onednn_takes(x)
        out, expected = linear(*leaves), torch.nn.functional.linear(*doubles)
        grad = torch.randn(70, 20)
        out.backward(grad)
        expected.backward(grad.double())
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)
        for single, double in zip(leaves, doubles, strict=True):
            torch.testing.assert_close(single.grad.double(), double.grad, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(product(x, weight), x @ weight.mT, atol=1e-4, rtol=1e-5)

    @pytest.mark.parametrize("rows", [0, 1])
    def test_few_rows(self, rows):
        x, weight = torch.ones(rows, 4), torch.ones(3, 4, requires_grad=True)
        out = linear(x, weight, torch.zeros(3))
        out.sum().backward()
        assert out.shape == (rows, 3)
        assert (weight.grad == rows).all()
