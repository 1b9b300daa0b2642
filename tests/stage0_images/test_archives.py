"""A zip archive is read like the folder that it would unpack to; folders of images in a tar archive are refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_sources import png, values_of

from stage0_images import archives
from stage0_images.pixels import decoding, read_image
from stage0_images.reading import BadImage, DiskFile


def zipped(file: Path, names: dict[str, int | bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, value in names.items():
            archive.writestr(name, png(value) if isinstance(value, int) else value)
    return file.parent


def test_an_archive_is_read_like_its_folder(opened, in_tmp):
    names = {"pets/dog/2.png": 2, "pets/cat/1.png": 1, "pets/cat/.hidden.png": 9, "__MACOSX/pets/cat/1.png": b"x"}
    source = opened(zipped(in_tmp / "a" / "pets.zip", names))
    split = source.splits["train"]
    assert source.classes == ("cat", "dog") and values_of(split) == [1, 2]
    assert [image.file for image in split.fetch(np.arange(2))] == ["pets/pets/cat/1.png", "pets/pets/dog/2.png"]
    assert sorted(path.name for path in (in_tmp / "a").rglob("*")) == ["pets.zip"], "nothing is unpacked"
    assert [one.file for one in source.aside] == ["pets/__MACOSX"]


def test_archives_may_be_splits(opened, in_tmp):
    zipped(in_tmp / "a" / "train.zip", {"cat/1.png": 1, "dog/2.png": 2})
    source = opened(zipped(in_tmp / "a" / "test.zip", {"dog/3.png": 3}, zipfile.ZIP_STORED))
    assert {name: values_of(split) for name, split in source.splits.items()} == {"train": [1, 2], "test": [3]}
    assert source.classes == ("cat", "dog")


def test_metadata_inside_an_archive_gives_labels(opened, in_tmp):
    rows = b"file_name,label\n1.png,owl\n2.png,fox\n3.png,owl\n4.png,fox\n"
    images = {f"{number}.png": number for number in range(1, 5)}
    source = opened(zipped(in_tmp / "a" / "pets.zip", {"metadata.csv": rows, **images}))
    assert source.classes == ("fox", "owl") and values_of(source.splits["train"]) == [1, 2, 3, 4]
    assert source.splits["train"].labels.tolist() == [1, 0, 1, 0]


def test_files_beside_archives_are_counted_and_metadata_beside_them_gives_labels(opened, in_tmp):
    folder = zipped(in_tmp / "a" / "p.zip", {f"{number}.png": number for number in range(1, 5)} | {"in.txt": b"x"})
    (folder / "notes.txt").touch()
    (folder / "more.7z").touch()
    (folder / "metadata.csv").write_text("file_name,label\np/1.png,owl\np/2.png,fox\np/3.png,owl\np/4.png,fox\n")
    source = opened(folder)
    assert source.classes == ("fox", "owl") and source.splits["train"].labels.tolist() == [1, 0, 1, 0]
    assert {one.file: one.kind for one in source.aside} == {"notes.txt": ".txt", "more.7z": ".7z", "p/in.txt": ".txt"}


def test_names_that_lead_out_of_an_archive_stay_inside_it(opened, in_tmp):
    names = {"../../etc/1.png": 1, "/absolute/2.png": 2, "win\\dows\\3.png": 3}
    split = opened(zipped(in_tmp / "a" / "p.zip", names), use_labels=False).splits["train"]
    files = [image.file for image in split.fetch(np.arange(split.count))]
    assert files == ["p/absolute/2.png", "p/etc/1.png", "p/win/dows/3.png"] and values_of(split) == [2, 1, 3]


def test_what_cannot_be_unpacked_is_one_bad_image(opened, in_tmp, params):
    folder = zipped(in_tmp / "a" / "p.zip", {"1.png": 1, "2.png": 2, "3.png": 3, "4.png": bytes(10**7)})
    data = bytearray((folder / "p.zip").read_bytes())
    with zipfile.ZipFile(folder / "p.zip") as archive:
        places = [info.header_offset for info in archive.infolist()]
    data[places[1] + 60] ^= 0xFF  # inside the packed bytes
    central = data.index(b"PK\x01\x02")
    data[places[0] + 6] |= 1  # says that it is encrypted
    data[central + 8] |= 1
    (folder / "p.zip").write_bytes(data)
    small = params({"data.max_pixels": 100}).data
    reasons = []
    with decoding():
        for image in opened(folder).splits["train"].fetch(np.arange(4)):
            try:
                read_image(image.content, small.model_copy(update={"max_pixels": 100}))
                reasons.append("")
            except BadImage as error:
                reasons.append(str(error))
    assert "is encrypted" in reasons[0] and "cannot be unpacked: damaged" in reasons[1] and reasons[2] == ""
    assert "known format" in reasons[3]


def test_a_bomb_is_refused_before_it_is_unpacked(opened, in_tmp, monkeypatch, params):
    split = opened(zipped(in_tmp / "a" / "p.zip", {"1.png": bytes(2**25), "2.png": 2})).splits["train"]
    image = split.fetch(np.array([0]))[0]
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("it was read"))
    with decoding(), pytest.raises(BadImage, match="a file of 33554432 bytes, over the"):
        read_image(image.content, params({"data.max_pixels": 100}).data)


def test_archives_that_cannot_be_read_are_refused(in_tmp, refused, monkeypatch):
    folder = zipped(in_tmp / "a" / "p.zip", {"1.png": 1})
    whole = (folder / "p.zip").read_bytes()
    (folder / "p.zip").write_bytes(whole[:-10])
    assert "p.zip: not a readable zip archive (File is not a zip file)" in refused(folder)
    (folder / "p.zip").write_bytes(whole)
    monkeypatch.setattr(archives, "DIRECTORY_BYTES", 10)
    assert "its list of files has" in refused(folder)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(folder / "p.zip", {"x": b"x"})
        with zipfile.ZipFile(folder / "p.zip", "a") as archive:
            archive.writestr("x", b"y")
    assert "its file x would be p/x, and there is another file of this name" in refused(folder)
    message = refused(zipped(in_tmp / "b" / "p.zip", {"notes.txt": b"x", "1.heic": b"x"}))
    assert "has 2 files, those in zip archives counted, but no image (found: .heic, .txt)" in message


def test_files_beside_and_in_archives_that_would_have_one_name_are_refused(in_tmp, refused):
    folder = zipped(in_tmp / "a" / "p.zip", {"1.png": 1, "metadata.csv": b"file_name,label\n1.png,a\n"})
    (folder / "p").mkdir()
    (folder / "p" / "metadata.csv").write_text("file_name,label\n1.png,b\n")
    assert "its file metadata.csv would be p/metadata.csv, and there is another" in refused(folder)
    both = zipped(in_tmp / "b" / "p.zip", {"1.png": 1})
    zipped(in_tmp / "b" / "p.ZIP", {"1.png": 1})
    assert "its file 1.png would be p/1.png, and there is another" in refused(both)


def tarred(file: Path, names: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.parent


def test_a_tar_archive_with_folders_of_images_is_to_be_unpacked(in_tmp, refused):
    folder = tarred(in_tmp / "a" / "photos.tar", {"./cat/1.png": png(1), "./dog/2.PNG": png(2), "./notes.txt": b"x"})
    (folder / "read me.txt").touch()
    tarred(in_tmp / "a" / "1.tar", {"1.png": png(1), "1.cls": b"0"})
    message = refused(folder)
    assert "no image is read from photos.tar while it is packed; unpack it, and set data.source and data" in message


def is_packed(file: Path, names: dict[str, bytes]) -> bool:
    return archives.is_packed_folder(DiskFile(tarred(file, names) / file.name))


@pytest.mark.parametrize(
    ("names", "packed"),
    [
        (["cat\\1.jpg", "dog\\2.jpg"], True),
        (["cat/1.jpg", "cat/1.xmp"], True),
        (["cat/1.jpg", "cat/2.txt", "labels.json"], True),
        (["cat/1.jpg", "cat/1.cls"], False),
        (["cat/1.left.jpg", "cat/1.label.TXT"], False),
        (["1.jpg", "2.jpg", "about/me.txt"], False),
    ],
)
def test_a_shard_has_labels_beside_its_images_or_no_folders(in_tmp, names, packed):
    assert is_packed(in_tmp / "a" / "x.tar", dict.fromkeys(names, b"x")) == packed


def test_only_the_first_headers_of_a_tar_archive_are_read(in_tmp, monkeypatch):
    monkeypatch.setattr(archives, "TAR_HEADERS", 2)
    many = {f"cat/{number}.txt": b"x" for number in range(2)} | {"dog/2.png": png(2)}
    assert not is_packed(in_tmp / "a" / "x.tar", many)


@pytest.mark.parametrize("size", [1, 2**40])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_made_to_exhaust_memory_or_the_stack_do_no_harm(in_tmp, kind, size):
    image = tarfile.TarInfo("cat/1.png").tobuf()
    long = tarfile.TarInfo("long")
    long.type, long.size = kind, size
    file = in_tmp / "x.tar"
    for before in (b"", image):
        file.write_bytes(before + (long.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 2000)
        assert archives.is_packed_folder(DiskFile(file)) == bool(before)


def test_a_webdataset_shard_is_read_as_tables(opened, in_tmp):
    flat = {f"{number:03}.png": png(number) for number in range(4)}
    assert values_of(opened(tarred(in_tmp / "flat" / "1.tar", flat)).splits["train"]) == [0, 1, 2, 3]
    shard = {
        f"part/00{n}.{ending}": data for n in range(4) for ending, data in {"png": png(n), "cls": b"%d" % n}.items()
    }
    source = opened(tarred(in_tmp / "inside" / "1.tar", shard))
    assert values_of(source.splits["train"]) == [0, 1, 2, 3]


def test_a_label_inside_the_json_files_of_a_shard_is_named_as_not_used(opened, in_tmp, refused):
    files = {}
    for number in range(4):
        files |= {f"{number:03}.png": png(number), f"{number:03}.json": b'{"label": %d, "width": 8}' % (number % 2)}
    source = opened(tarred(in_tmp / "shard" / "1.tar", files))
    assert source.classes is None
    line = "'label' is a field inside column 'json', and only a column of its own is taken for labels"
    assert source.notes == (f"no labels: {line}",)
    assert line in refused(in_tmp / "shard", label_column="label")  # as a preset names it


def test_a_damaged_tar_archive_is_left_to_datasets(in_tmp, refused):
    (in_tmp / "a").mkdir()
    (in_tmp / "a" / "photos.tar").write_bytes(b"no archive at all")
    message = refused(in_tmp / "a")
    assert "cannot be read as a dataset" in message and "unpack" not in message
