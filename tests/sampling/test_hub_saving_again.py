"""A pipeline that came with a card is saved again; and what a card says of data, licence and guidance is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from saved_pipelines import load

from sampling.card import card
from sampling.provenance import Provenance
from tessera.errors import UserError

OTHERS = 'pipeline = TwoStagePipeline.from_pretrained("me/others", revision="main")'


def test_the_current_folder_is_refused_and_a_link_stays(pipeline, in_tmp, monkeypatch):
    (in_tmp / "here").mkdir()
    (in_tmp / "link").symlink_to("here")
    monkeypatch.chdir(in_tmp / "here")
    for folder in (".", "../here", "../link"):
        with pytest.raises(UserError, match="is the current folder, which cannot be replaced; name a new folder"):
            pipeline.save_pretrained(folder)
    monkeypatch.chdir(in_tmp)
    assert pipeline.save_pretrained("link") == Path("link") and (in_tmp / "link").is_symlink()
    assert load("here").parents == pipeline.parents == load("link").parents
    assert not list(in_tmp.glob(".*.new-*"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_the_card_s_own_line_and_licence_change(pipeline, end):
    file = pipeline.save_pretrained("saved") / "README.md"
    text = file.read_text().replace("## Use\n", f"{OTHERS}\n\n## Use\n")
    text += f"\n## See also\n\n{OTHERS}\n"
    file.write_bytes(text.replace("\n", end).encode())
    first = load("saved").save_pretrained("renamed", license="mit") / "README.md"
    came = first.read_bytes().decode()
    assert came.count("\n") == came.count(end), "lines end as before"
    came = came.replace(end, "\n")
    assert came.startswith("---\nlicense: mit\nlibrary_name: tessera\n") and came.count("\n---\n") == 1
    assert came.count(OTHERS) == 2 and 'TwoStagePipeline.from_pretrained("renamed")' in came
    assert "## Licence" in text and "Licence" not in came and "None is given" not in came
    kept = load("saved").save_pretrained("kept") / "README.md"
    assert kept.read_bytes().decode().replace(end, "\n") == text.replace('("saved")', '("kept")')


def test_a_list_of_licences_is_replaced_whole(pipeline):
    file = pipeline.save_pretrained("saved", license="mit") / "README.md"
    file.write_text(file.read_text().replace("license: mit\n", "license:\n- mit\n- apache-2.0\n"))
    text = (load("saved").save_pretrained("again", license="cc0-1.0") / "README.md").read_text()
    assert text.startswith("---\nlicense: cc0-1.0\nlibrary_name:") and "apache" not in text


def test_the_lines_of_a_card_run_without_a_null_label(pipeline, in_tmp):
    pipeline.prior.null_label = False
    text = pipeline.save_pretrained("saved").joinpath("README.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert (in_tmp / "sample.png").is_file()


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        (None, "`me/things` at revision `abc`."),
        ("me/things", "`me/things` at revision `abc`."),
        ("me/others", "`me/others`."),
    ],
)
def test_a_revision_is_of_the_run_s_own_data(pipeline, dataset, line):
    told = Provenance(recipe={"data": {"source": "me/things", "revision": "abc"}})
    assert f"\n\n## Data\n\n{line} 3 classes" in card(pipeline, told, "tiny", dataset=dataset)
