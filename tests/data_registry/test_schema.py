from __future__ import annotations

import dataclasses

import pytest

from data_registry.schema import TABLES, VolumeRow, arrow_schema, from_table, to_table


def volume_row(**changes: object) -> VolumeRow:
    row = VolumeRow(
        volume_id="V1", subject_id="P1", study_id="", series_id="S1", source="a", licence="MIT",
        role="image", synthetic=True, shard="x.h5", dataset="V1", num_slices=3, rows=4, columns=5,
        dtype="uint16", affine=tuple(float(i) for i in range(16)), spacing_mm=(3.0, 1.0, 1.0),
        plane="axial", region="brain", region_by="list", region_confidence=1.0, sequence="T1",
        sequence_by="list", sequence_confidence=1.0, vendor="unknown", field_strength_t=None,
        grid="g", split="train", window_low=0.0, window_high=9.5, pixel_hash="h",
        num_foreground_slices=2, coils=1, payload="uint8", scale=1.0, codec="none",
        percentiles=(0.0, 9.5),
    )  # fmt: skip
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


class TestRoundTrip:
    def test_rows_come_back_equal(self) -> None:
        rows = [volume_row(), volume_row(volume_id="V2", field_strength_t=1.5, facts='{"a": 1}')]
        assert from_table(VolumeRow, to_table(VolumeRow, rows, 7)) == rows

    def test_through_parquet(self, tmp_path) -> None:
        import pyarrow.parquet

        path = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(to_table(VolumeRow, [volume_row()], 7), path)
        table = pyarrow.parquet.read_table(path)
        assert from_table(VolumeRow, table) == [volume_row()]
        assert table.column("commit").to_pylist() == [7]

    def test_no_rows(self) -> None:
        assert from_table(VolumeRow, to_table(VolumeRow, [], 1)) == []


class TestColumns:
    @pytest.mark.parametrize("row", TABLES.values(), ids=TABLES.keys())
    def test_no_column_needs_quotes_for_offset(self, row: type) -> None:
        """DuckDB 2.0 refuses a bare column of this name."""
        assert "offset" not in arrow_schema(row).names

    @pytest.mark.parametrize("row", TABLES.values(), ids=TABLES.keys())
    def test_one_definition(self, row: type) -> None:
        own = [field.name for field in dataclasses.fields(row)]
        assert arrow_schema(row).names == [*own, "commit"]
