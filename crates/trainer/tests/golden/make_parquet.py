"""Writes captions.parquet with pyarrow 26: three row groups, Snappy, with null, an empty caption and a repeated one."""
import pathlib, pyarrow as pa, pyarrow.parquet as pq

folder = pathlib.Path(__file__).parent
captions = ["a red circle", None, " a green star ", "a \"blue\" ring\nabove a line", "", "a red circle", "ein grünes Herz 心"]
table = pa.table({
    "id": list(range(7)),
    "caption": captions,
    "title": ["x"] * 7,
    "tags": [["a", "b"]] * 7,
})
pq.write_table(table, folder / "captions.parquet", row_group_size=3, compression="snappy")
pq.write_table(table, folder / "captions_zstd.parquet", compression="zstd")
