from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from core_mri.errors import ConfigError, DataError
from downstream.classification.examples import draw_examples, find_examples
from downstream.classification.labels_table import read_labels
from downstream.cohort import Cohort, load_cohort


@pytest.fixture
def cohort(registry, sequences):
    return load_cohort(registry, sequences)


@pytest.fixture
def write_table(tmp_path, cohort, sequences):
    """Write a CSV and give the task that reads it."""

    def write(text, **changes):
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding="utf-8")
        return replace(sequences, table=path, target="finding", **changes)

    return write


def by_subject(cohort) -> str:
    """Every second patient is ill."""
    patients = sorted({row.subject_id for row in cohort.rows})
    lines = [f"{p},{'ill' if i % 2 else 'well'}" for i, p in enumerate(patients)]
    return "subject,finding\n" + "\n".join(lines) + "\n"


class TestColumns:
    def test_classes_of_the_column(self, cohort, sequences):
        found = find_examples(cohort, sequences)
        assert found.classes == ("T1", "T2")
        assert not found.left_out
        assert found.rows == tuple(sorted(cohort.rows, key=lambda row: row.volume_id))

    def test_one_class_is_too_few_and_the_counts_are_told(self, cohort, sequences):
        with pytest.raises(DataError, match=r"1 classes of region.*abdomen") as caught:
            find_examples(cohort, replace(sequences, target="region"))
        assert caught.value.code == "DATA-09"

    def test_a_class_without_test_volumes_is_left_out_and_counted(self, cohort, sequences):
        rare = tuple(replace(row, sequence="PD") for row in cohort.train[:2])
        found = find_examples(Cohort(cohort.train[2:] + rare, cohort.val, cohort.test), sequences)
        assert found.left_out == {"PD": 2}
        assert "PD" not in found.classes

    def test_a_class_without_validation_volumes_is_said(self, cohort, sequences, caplog):
        val = tuple(row for row in cohort.val if row.sequence == "T1")
        find_examples(Cohort(cohort.train, val, cohort.test), sequences)
        assert "no validation patient shows T2" in caplog.text

    def test_no_training_patient(self, cohort, sequences):
        with pytest.raises(DataError, match="training patients 0") as caught:
            find_examples(Cohort((), cohort.val, cohort.test), sequences)
        assert caught.value.code == "DATA-09"

    def test_slices_have_the_class_of_their_volume(self, cohort, sequences):
        found = find_examples(cohort, replace(sequences, level="slice"))
        assert len(found.train) == sum(row.num_slices for row in cohort.train)
        assert len({example.name for example in found.all}) == len(found.all)

    def test_a_patient_of_two_classes_is_refused(self, cohort, sequences):
        with pytest.raises(DataError, match=r"patient \w+ has volumes of \['T1', 'T2'\]") as caught:
            find_examples(cohort, replace(sequences, level="patient"))
        assert caught.value.code == "DATA-31"


class TestTables:
    @pytest.mark.parametrize("level", ["slice", "volume", "patient"])
    def test_a_label_of_a_patient_holds_for_volumes_and_slices(self, write_table, cohort, level):
        found = find_examples(cohort, write_table(by_subject(cohort), level=level))
        assert found.classes == ("ill", "well")
        labels = {example.subject_id: example.label for example in found.all}
        assert all(labels[example.subject_id] == example.label for example in found.all)
        if level == "patient":
            assert {len(example.rows) for example in found.all} == {2}

    def test_slices_may_have_labels_of_their_own(self, write_table, cohort):
        lines = ["volume,slice,finding"]
        for row in cohort.rows:
            lines += [f"{row.volume_id},{i},{'ill' if i < 2 else 'well'}" for i in range(4)]
        task = write_table("\n".join(lines), level="slice")
        found = find_examples(cohort, task)
        assert len(found.all) == 4 * len(cohort.rows)  # 6 slices each: the others have no label
        assert {e.slice_index for e in found.all if e.label == "ill"} == {0, 1}
        with pytest.raises(ConfigError, match="labels slices"):
            find_examples(cohort, replace(task, level="volume"))

    def test_other_labels_are_other_examples(self, write_table, cohort):
        text = by_subject(cohort)
        before = find_examples(cohort, write_table(text)).fingerprint
        assert find_examples(cohort, write_table(text)).fingerprint == before
        swapped = text.replace("ill", "x").replace("well", "ill").replace("x", "well")
        assert find_examples(cohort, write_table(swapped)).fingerprint != before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("subject,finding\na,ill\na,well\n", r"line 3: subject a has the label 'well'"),
            ("subject,diagnosis\na,ill\n", "needed are 'finding'"),
            ("finding\nill\n", "either 'subject' or 'volume'"),
            ("subject,volume,finding\na,b,ill\n", "either 'subject' or 'volume'"),
            ("subject,slice,finding\na,1,ill\n", "either 'subject' or 'volume'"),
            ("volume,slice,finding\na,one,ill\n", "slice 'one' is no whole number"),
            ("", "has the columns"),
            ("subject,finding\nnobody,ill\n", "none of its 1 labels.*such as nobody"),
            ('subject,finding\n"a,ill\n', "not a readable table"),
        ],
    )
    def test_bad_tables_are_told_with_line_and_fix(self, write_table, cohort, text, message):
        with pytest.raises(DataError, match=message) as caught:
            find_examples(cohort, write_table(text))
        assert caught.value.code == "DATA-31"

    def test_a_missing_or_binary_file_is_named(self, tmp_path):
        (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
        for name in ("a.csv", "b.csv"):
            with pytest.raises(DataError, match=name) as caught:
                read_labels(tmp_path / name, "finding")
            assert caught.value.code == "DATA-31"

    def test_empty_labels_and_foreign_ids_do_not_count(self, write_table, cohort, caplog):
        text = by_subject(cohort) + "nobody,ill\nsomebody,\n"
        find_examples(cohort, write_table(text))
        assert "1 ids of" in caplog.text
        assert "nobody" in caplog.text


class TestDraws:
    def drawn(self, cohort, task, per_class, draw=0):
        found = find_examples(cohort, task)
        return draw_examples(
            found.train, found.classes, per_class, seed=0, draw=draw, task="sequence"
        )

    def test_every_class_has_as_many(self, cohort, sequences):
        counts = Counter(example.label for example in self.drawn(cohort, sequences, 3))
        assert counts == {"T1": 3, "T2": 3}

    def test_five_are_contained_in_more_and_draws_differ(self, cohort, sequences):
        few, more = ({e.name for e in self.drawn(cohort, sequences, number)} for number in (2, 4))
        assert few < more
        assert few != {e.name for e in self.drawn(cohort, sequences, 2, draw=1)}

    def test_slices_come_from_as_many_patients_as_possible(self, cohort, sequences):
        task = replace(sequences, level="slice")
        chosen = self.drawn(cohort, task, 4)
        patients = Counter((example.label, example.subject_id) for example in chosen)
        assert set(patients.values()) == {1}

    def test_the_order_of_the_catalogue_does_not_matter(self, cohort, sequences):
        turned = Cohort(cohort.train[::-1], cohort.val, cohort.test)
        assert self.drawn(cohort, sequences, 3) == self.drawn(turned, sequences, 3)

    def test_a_class_with_fewer_is_named(self, cohort, sequences):
        with pytest.raises(DataError, match="500 labelled examples of class T1") as caught:
            self.drawn(cohort, sequences, 500)
        assert caught.value.code == "DATA-09"

    def test_zero_takes_all(self, cohort, sequences):
        assert len(self.drawn(cohort, sequences, 0)) == len(cohort.train)
