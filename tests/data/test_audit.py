import hashlib
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from pipeline.config.data import DataConfig
from pipeline.data import audit as audit_module
from pipeline.data import audit_cache
from pipeline.data.audit import audit_files
from pipeline.data.duplicates import DESCRIPTOR
from pipeline.data.examination import examine_image
from pipeline.data.folders import list_folder
from pipeline.errors import DatasetError

SPEC = importlib.util.spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
corpus = importlib.util.module_from_spec(SPEC)
sys.modules["corpus"] = corpus
SPEC.loader.exec_module(corpus)
CONFIG = DataConfig()


def write_corpus(folder):
    (folder / "odd").mkdir(parents=True)
    for name, (content, _) in corpus.CORPUS.items():
        (folder / "odd" / name).write_bytes(content)
    return folder


def look(folder, memory, config=CONFIG):
    return audit_files(list_folder(folder).files, memory, config, lambda *_: None)


@pytest.mark.parametrize("name", corpus.CORPUS)
def test_each_kind_of_file_has_its_verdict(name):
    content, verdict = corpus.CORPUS[name]
    facts = examine_image(content, CONFIG)
    assert facts.sha256 == hashlib.sha256(content).digest()
    if verdict:
        assert verdict in facts.problem
        assert "\n" not in facts.problem
        assert facts.descriptor == b""
    else:
        assert facts.problem == ""
        assert len(facts.descriptor) == DESCRIPTOR.itemsize


def test_every_file_of_the_corpus_is_counted_once(tmp_path, make_dataset, write_folder):
    import json

    assert len(corpus.CORPUS) >= 40
    root = write_corpus(write_folder(tmp_path / "p", classes=("a", "b")))
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere")
    dataset = make_dataset(
        dataset=str(root), max_quarantined_fraction=0.9, duplicates="report", draw=True
    )
    card = json.loads((dataset.directory / "report" / "dataset_card.json").read_text())
    bad = {f"odd/{name}" for name, (_, verdict) in corpus.CORPUS.items() if verdict}
    assert {item["file"] for item in card["quarantined"]} == bad
    assert (
        card["found"]
        == card["accepted"] + len(bad) + sum(card["excluded"].values())
        == 60 + len(corpus.CORPUS) + 2
    )
    assert card["excluded"] == {"broken links": 1, "not a file": 1}
    kept = [
        key
        for split in dataset.reads
        for key in parquet.read_table(dataset.directory / "index" / f"{split}.parquet")[
            "key"
        ].to_pylist()
    ]
    assert len(kept) == len(set(kept)) == card["accepted"]
    assert not bad & set(kept)


def test_limits_are_known_from_the_header():
    assert (
        examine_image(corpus.PNG, CONFIG.model_copy(update={"max_pixels": 48 * 64})).problem == ""
    )
    assert (
        examine_image(corpus.PNG, CONFIG.model_copy(update={"max_pixels": 48 * 64 - 1})).problem
        == "64 x 48 pixels are more than 3,071"
    )
    assert (
        "a side of 64 pixels"
        in examine_image(corpus.PNG, CONFIG.model_copy(update={"max_side": 63})).problem
    )


def test_facts_are_those_of_the_upright_image():
    facts = {
        name: examine_image(corpus.CORPUS[name][0], CONFIG)
        for name in ("plain.png", "plain.bmp", "turned.jpg", "plain.webp")
    }
    assert (
        facts["turned.jpg"].height,
        facts["turned.jpg"].width,
        facts["turned.jpg"].orientation,
    ) == (64, 48, 6)
    assert (
        facts["plain.png"].pixel_hash
        == facts["plain.bmp"].pixel_hash
        == facts["plain.webp"].pixel_hash
        != facts["turned.jpg"].pixel_hash
    )
    (look,) = np.frombuffer(facts["plain.png"].descriptor, DESCRIPTOR)
    assert np.abs(look["color"] - corpus.PIXELS.mean((0, 1))).max() < 1.5


def test_shape_counts_as_well_as_pixels():
    flat = np.full((4, 8, 3), 9, np.uint8)
    import tensorflow as tf

    found = {
        examine_image(tf.io.encode_png(flat.reshape(shape)).numpy(), CONFIG).pixel_hash
        for shape in ((4, 8, 3), (8, 4, 3), (2, 16, 3))
    }
    assert len(found) == 3


def test_second_look_reads_only_what_changed(tmp_path, monkeypatch):
    root, memory = write_corpus(tmp_path / "p"), tmp_path / "audits" / "x.sqlite"
    first = look(root, memory)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (root / "odd" / "new.png").write_bytes(corpus.PNG)
    changed = root / "odd" / "plain.bmp"
    changed.write_bytes(corpus.BMP[:-3] + b"abc")
    os.utime(changed, ns=(before[changed], before[changed]))  # same size, same time
    read = []
    read_file = audit_module._read_file
    monkeypatch.setattr(
        audit_module,
        "_read_file",
        lambda file, config: (read.append(file.file.name), read_file(file, config))[1],
    )
    second = look(root, memory)
    assert sorted(read) == ["odd/new.png", "odd/plain.bmp"]
    same = {item.file.key: item.facts for item in second}
    assert all(
        same[item.file.key] == item.facts for item in first if item.file.name != "odd/plain.bmp"
    )
    assert (
        same["odd/plain.bmp"].pixel_hash
        != {item.file.key: item.facts for item in first}["odd/plain.bmp"].pixel_hash
    )
    read.clear()
    look(root, memory, CONFIG.model_copy(update={"max_side": 64}))
    assert len(read) == len(second)


@pytest.mark.parametrize(("files", "size"), [(256, 64_000_000), (7, 64_000_000), (256, 1500)])
def test_windows_do_not_change_what_is_found(tmp_path, monkeypatch, files, size):
    """Together with others, alone, or behind files that fail: each has the facts that it has by
    itself."""
    root = write_corpus(tmp_path / "p")
    monkeypatch.setattr(audit_module, "_BATCH_FILES", files)
    monkeypatch.setattr(audit_module, "_BATCH_BYTES", size)
    found = look(root, tmp_path / "x.sqlite")
    assert [item.file for item in found] == list(list_folder(root).files)
    assert {item.file.name: item.facts for item in found} == {
        item.file.name: examine_image(Path(item.file.path).read_bytes(), CONFIG) for item in found
    }
    assert sum(not item.problem for item in found) > 20


def test_an_audit_that_was_stopped_carries_on(tmp_path, monkeypatch):
    root, memory = tmp_path / "p", tmp_path / "x.sqlite"
    (root / "a").mkdir(parents=True)
    for index in range(600):
        (root / "a" / f"{index:03}.png").write_bytes(
            corpus.PNG + bytes([index % 256, index // 256])
        )

    def stop(done, total, text):
        if done >= 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_files(list_folder(root).files, memory, CONFIG, stop)
    told = []
    audit_files(list_folder(root).files, memory, CONFIG, lambda *words: told.append(words))
    assert told[-1] == (600, 600, "checking files: 88 read, 512 known, 0 unusable")


def test_a_damaged_memory_is_made_again_and_an_impossible_one_is_named(tmp_path):
    root, memory = write_corpus(tmp_path / "p"), tmp_path / "x.sqlite"
    memory.write_bytes(b"this is no database" * 100)
    assert len(look(root, memory)) == len(corpus.CORPUS)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write .*file/x.sqlite"):
        look(root, tmp_path / "file" / "x.sqlite")


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    root = tmp_path / "p"
    (root / "a").mkdir(parents=True)
    for name in ("gone.jpg", "large.jpg", "good.png"):
        (root / "a" / name).write_bytes(corpus.PNG)
    (root / "a" / "large.jpg").write_bytes(bytes(5000))
    entries = list_folder(root).files
    (root / "a" / "gone.jpg").unlink()
    found = audit_files(
        entries,
        tmp_path / "x.sqlite",
        CONFIG.model_copy(update={"max_file_bytes": 4000}),
        lambda *_: None,
    )
    assert {item.file.key: item.problem for item in found} == {
        "a/gone.jpg": "No such file or directory",
        "a/good.png": "",
        "a/large.jpg": "5,000 bytes are more than 4,000",
    }


def mutations(count, seed):
    """Yield valid files of every format with some bytes changed, removed or repeated."""
    rng = np.random.default_rng(seed)
    whole = [
        corpus.CORPUS[f"{name}"][0]
        for name in (
            "plain.jpg",
            "plain.png",
            "plain.bmp",
            "still.gif",
            "plain.webp",
            "turned.jpg",
            "alpha.png",
        )
    ]
    for index in range(count):
        data = bytearray(whole[index % len(whole)])
        for _ in range(rng.integers(1, 9)):
            at = int(rng.integers(0, min(len(data), 64 if rng.random() < 0.5 else len(data))))
            kind = rng.integers(3)
            if kind == 0:
                data[at] = rng.integers(256)
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 40))]
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            if not data:
                break
        yield bytes(data)


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_random_damage_crashes_nothing(count):
    config = CONFIG.model_copy(update={"max_pixels": 1_000_000})
    verdicts = [examine_image(data, config).problem for data in mutations(count, seed=count)]
    assert 0.2 * count < sum(bool(problem) for problem in verdicts) < count
    assert all("\n" not in problem and len(problem) < 200 for problem in verdicts)


def test_the_cache_depends_on_code_without_comments(monkeypatch):
    """The engine's digests leave comments and docstrings out; a changed one empties the cache."""
    from pipeline.engine.fingerprint import source_digest

    before = audit_cache._digest_rules(CONFIG)
    digests = {
        f"pipeline.data.{name}": source_digest(f"pipeline.data.{name}")
        for name in audit_cache._DECISIVE_MODULES
    }
    monkeypatch.setattr(audit_cache, "source_digest", digests.__getitem__)
    assert audit_cache._digest_rules(CONFIG) == before
    digests["pipeline.data.decoding"] = "another"
    assert audit_cache._digest_rules(CONFIG) != before
