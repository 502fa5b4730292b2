import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dinov2rt.analysis.labels import check_known, find_labels
from dinov2rt.errors import InputError


def csv(folder: Path, text: str) -> str:
    file = folder / "l.csv"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_labels_come_from_csv_in_the_order_of_the_keys(tmp_path: Path) -> None:
    source = csv(tmp_path, '\ufeffnote,key,label\n,"a,1.jpg",cat\n,b.jpg,7\n,other.jpg,dog\n')
    assert find_labels(["b.jpg", "a,1.jpg"], source) == ["7", "cat"]


def test_labels_come_from_parquet_as_text(tmp_path: Path) -> None:
    file = tmp_path / "l.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": [3, 0], "key": ["a", "b"]}), file)
    assert find_labels(["a", "b"], str(file)) == ["3", "0"]


def test_a_folder_labels_what_lies_in_it() -> None:
    keys = ["d/cat/1.jpg", "d/dog/1.jpg", "d/s.tar#cat/2.jpg", "x#1/emu/3.jpg"]
    assert find_labels(keys, "folder") == ["cat", "dog", "cat", "emu"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("key,label\na,1\n", "has no label for 4 of 5 images, such as b, c, d; a key there is a"),
        ("key,label\na,1\nb,\n", "has no label for 4 of 5 images, such as b, c, d"),
        ("key,label\na,1\na,2\n", "gives a two labels, 1 and 2; leave one of them out"),
        ("path,class\na,1\n", "has no column 'key', only path, class; it must have key and label"),
        ("", "has no column 'key', only none"),
        ("label,key\n1\n2,b\n", "has no label for 4 of 5 images, such as a, c, d"),
        ("key,label,key\na,1,b\n", "has several columns 'key'; leave one"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_labels(list("abcde"), csv(tmp_path, source))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_in_no_folder_have_no_label() -> None:
    with pytest.raises(
        InputError, match=r"folder has no label for 2 of 2 images, such as a\.jpg, s\.p"
    ):
        find_labels(["a.jpg", "s.parquet#0"], "folder")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"", "labels '.*l.txt' are neither 'folder' nor a file with one of .* .csv, .pa"),
        ("l.csv", b"key,label\n\xff,1\n", "l.csv is not CSV in UTF-8"),
        ("l.parquet", b"no", "l.parquet cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_labels(["a"], str(tmp_path / name))


@pytest.mark.parametrize("name", ["l.csv", "l.parquet"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        find_labels(["a"], str(tmp_path / name))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    for name in ("l.csv", "l.parquet"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            find_labels(["a"], str(tmp_path / name))


def test_classes_that_were_never_trained_are_refused() -> None:
    check_known(["a", "b"], ["b", "a", "c"])
    with pytest.raises(
        InputError, match=r"3 test images have labels .* such as x, y; no classifier can"
    ):
        check_known(["x", "a", "x", "y"], ["a"])
