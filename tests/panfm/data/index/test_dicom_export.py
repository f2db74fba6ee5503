"""An archive's export: a scan per folder, whose it is by the header, and never who."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

from tests.panfm.data.index.site_folders import KEY, Index, WriteVolume, listed, reasons


def test_series_by_their_headers(
    tmp_path: Path, index: Index, write_series: WriteVolume, write_volume: WriteVolume
) -> None:
    write_series(tmp_path / "export/0001/liver_1", PatientID="P1", StudyInstanceUID="1.1", series="1.1.1")
    write_series(tmp_path / "export/0001/liver_2", PatientID="P1", StudyInstanceUID="1.2", series="1.2.1")
    write_series(tmp_path / "export/0002/spleen", PatientID=" P2 ", StudyInstanceUID="1.3", series="1.3.1")
    write_series(tmp_path / "export/0003/spleen", PatientID="", series="1.4.1")
    write_series(tmp_path / "export/0004/scout", PatientID="P3", series="1.5.1")
    write_volume("export/report.nii.gz")
    found = index("export", "dicom", organ=("liver=*/liver_*", "spleen=*/spleen"))
    assert listed(found) == {
        (KEY.subject("P1"), KEY.visit("P1", "1.1"), "liver", "liver_1"),
        (KEY.subject("P1"), KEY.visit("P1", "1.2"), "liver", "liver_2"),
        (KEY.subject("P2"), KEY.visit("P2", "1.3"), "spleen", "spleen"),
    }
    assert reasons(found) == {
        "0003/spleen": "no_patient",
        "0004/scout": "unknown_organ",
        "report.nii.gz": "not_understood",
    }
