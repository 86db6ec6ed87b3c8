from __future__ import annotations

import shutil

import numpy as np
import pytest

from enlarger.errors import SettingsError
from enlarger.evaluation.fidelity import psnr, ssim
from enlarger.evaluation.folders import pictures_in
from enlarger.evaluation.protocols import PROTOCOLS, find_protocol, known_digests, of_protocol
from enlarger.picture.bicubic import resize
from enlarger.picture.read import read_rgb


def test_the_shipped_files_are_recognised(benchmarks):
    for name, protocol in PROTOCOLS.items():
        task = of_protocol(name, benchmarks)
        assert task.border == (0 if name == "realsr" else 4)
        assert all(pair.source and pair.reference for pair in task.pairs)
        part = [f"{len(task.pairs)} of the {protocol.complete}"] if len(task.pairs) < protocol.complete else []
        assert len(task.remarks) == len(part)
        assert all(task.remarks[i].startswith(part[i]) for i in range(len(part)))


def test_a_changed_file_is_remarked(benchmarks, tmp_path):
    shutil.copytree(benchmarks / "Set5", tmp_path / "Set5")
    target = tmp_path / "Set5" / "LRx4" / "img_003.png"
    shutil.copy(tmp_path / "Set5" / "LRx4" / "img_001.png", target)
    (tmp_path / "Set5" / "HR" / "img_004.png").rename(tmp_path / "Set5" / "HR" / "img_009.png")
    remarks = " | ".join(of_protocol("Set-5", tmp_path / "Set5").remarks)  # the set's own folder is accepted too
    assert "not the published files: LRx4/img_003.png" in remarks
    assert "1 files whose digests are not known" in remarks


def test_what_is_not_there_says_what_is_needed(tmp_path):
    with pytest.raises(SettingsError, match="there are set5, set14"):
        find_protocol("div2k")
    with pytest.raises(SettingsError, match=r"no Set14/ with HR/ and LRx4/"):
        of_protocol("set14", tmp_path)
    with pytest.raises(SettingsError, match="no such folder"):
        of_protocol("set14", tmp_path / "absent")


def test_every_known_file_belongs_to_a_protocol():
    folders = {protocol.folder for protocol in PROTOCOLS.values()}
    known = known_digests()
    assert len(known) == 284
    assert {path.split("/")[0] for path in known} == folders
    assert all(len(digest) == 64 for digest in known.values())


@pytest.mark.slow
def test_the_benchmarks_bicubic_is_measured_as_published(benchmarks):
    """benchmarks/README.md: MATLAB-like bicubic on Set5 28.432 dB / 0.8113."""
    scores = []
    true = pictures_in(benchmarks / "Set5" / "HR")
    for name, path in pictures_in(benchmarks / "Set5" / "LRx4").items():
        reference = read_rgb(true[name])
        enlarged = resize(read_rgb(path), *reference.shape[:2])
        scores.append((psnr(enlarged, reference, border=4), ssim(enlarged, reference, border=4)))
    assert np.mean(scores, axis=0) == pytest.approx([28.432, 0.8113], abs=6e-4)
