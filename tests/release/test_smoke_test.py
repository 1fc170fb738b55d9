"""The smoke test of a release: a real service in another process."""

import shutil

import pytest

from pipeline.release.smoke_test import run_smoke_test


def test_a_clean_process_serves_the_release_as_it_was_evaluated(release, tmp_path):
    check = run_smoke_test(release, tmp_path)
    assert check.passed, check.text
    assert "answered 3 golden images" in check.text
    assert not run_smoke_test(
        release.model_copy(update={"golden": ()}), tmp_path
    ).passed  # nothing to try it with


@pytest.mark.slow
def test_a_release_that_answers_otherwise_is_seen_by_the_smoke_test(release, tmp_path):
    other = release.golden[0].model_copy(update={"logits": (9.0, 9.0, 9.0)})
    copy = tmp_path / "copy"
    shutil.copytree(release.directory, copy)
    changed = release.model_copy(update={"golden": (other, *release.golden[1:]), "directory": copy})
    (copy / "release.json").write_text(changed.to_json())
    refused = run_smoke_test(changed, tmp_path)
    assert not refused.passed
    assert "does not answer its golden images" in refused.text
