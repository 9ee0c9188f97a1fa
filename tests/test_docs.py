"""The documentation leads nowhere wrong, and says what the code says. `make docs` builds it, and is as strict."""

import ast
import importlib.util
import re
import shlex
import subprocess
import tomllib
from types import SimpleNamespace

import pytest
import yaml

from mecap_jax.__main__ import commands
from mecap_jax.config import Config, load
from mecap_jax.config.reference import keys
from tests.documented import ROOT
from tests.test_documented_commands import defined_flags

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_what_a_page_takes_is_there_and_its_links_lead_to_pages(path, hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=str(path.relative_to(DOCS))))
    text = hooks.on_page_markdown(path.read_text(encoding="utf-8"), page)
    assert "{{ " not in text and text.strip()
    known = {p.resolve() for p in (*PAGES, *DOCS.glob("pictures/*"))} | {
        DOCS / "api" / f"{n}.md" for n in hooks.api_pages()
    }
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (path.parent / target).resolve() in known, target


def test_no_docstring_reads_as_a_link():
    """Markdown takes "[B][R]" for a link to "R", which the strict build looks for."""
    for path in sorted((ROOT / "mecap_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = re.sub(r"`[^`]*`", "", ast.get_docstring(node) or "")
                assert not (found := re.findall(r"\][ \n]?\[\w+\]", text)), f"{path}: {node}: {found}"


def test_every_page_has_a_place(hooks):
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def places(node):
        return [node] if isinstance(node, str) else [place for value in node for place in places(value)]

    entries = [value for entry in site["nav"] for value in entry.values()]
    for _ in range(2):
        entries = [inner for entry in entries for inner in ([entry] if isinstance(entry, str) else
                   [value for item in entry for value in item.values()])]  # fmt: skip
    assert sorted(entries) == sorted([*(str(path.relative_to(DOCS)) for path in PAGES), "api/index.md"])
    assert site["strict"] and site["theme"]["font"] is False  # no font from outside


def test_links_of_what_is_taken_lead_on_from_where_it_stands_now(hooks):
    text = "[a](docs/plans.md#what), [b](benchmarks/RESULTS.md), [c](LICENSE), [d](https://x.org/y.md), "
    text += "![e](x.png), ![f](docs/y.png)"
    assert hooks.relink(text, "README.md", "docs/tutorials/backbone.md") == (
        "[a](../plans.md#what), [b](../measured.md), `LICENSE`, [d](https://x.org/y.md), ![e](x.png), ![f](../y.png)"
    )
    with pytest.raises(ValueError, match="no section 'Absent'; there are Quick start"):
        hooks.section((ROOT / "README.md").read_text(encoding="utf-8"), "Absent")


def test_every_key_is_listed_with_its_default(hooks):
    text = hooks.configuration()
    listed = re.findall(r"^\| `([\w.]+)` \|", text, re.M)
    assert listed == sorted(listed, key=listed.index) and set(listed) == {key.path for key in keys(Config)}
    recipe = {key.path for key in keys(load("configs/grpo.py"))}
    assert not {path for path in recipe if path not in listed and not path.startswith("model.audio.")}
    assert "| `grpo.group_size` | `8` |" in text and "| `model.decoder.hidden_size` |" in text


def test_every_command_is_listed_with_its_flags(hooks):
    text = hooks.command_pages()
    assert re.findall(r"^## (.+)$", text, re.M) == list(commands())
    for name, path in commands().items():
        part = re.split(r"^## ", text.split(f"## {name}\n")[1], flags=re.M)[0]
        assert set(re.findall(r"^\| `--(\w+)` \|", part, re.M)) == defined_flags(path), name


def test_every_package_has_its_docstrings(hooks):
    pages = hooks.api_pages()
    packages = {path.parent.name for path in (ROOT / "mecap_jax").glob("*/__init__.py")}
    assert set(pages) == packages | {"mecap_jax", "index"}
    assert "::: mecap_jax.rewards.base\n" in pages["rewards"] and "::: mecap_jax.captioner\n" in pages["mecap_jax"]
    assert "::: mecap_jax.models.encoders.whisper" in pages["models"]


def test_cluster_files_run_commands_that_there_are():
    slurm = DOCS / "cluster" / "train.slurm"
    assert subprocess.run(["bash", "-n", slurm]).returncode == 0
    line = re.search(r"python (scripts/.*?) \|\|", slurm.read_text(encoding="utf-8").replace("\\\n", ""), re.S)
    container = list(yaml.safe_load_all((DOCS / "cluster" / "train.yaml").read_text(encoding="utf-8")))[1]
    (pod,) = container["spec"]["template"]["spec"]["containers"]
    assert pod["command"][0] == "mecap-train"
    for words, devices in ((shlex.split(line[1]), 2 * 8), (pod["command"], 4 * 4)):
        options = dict(word[2:].split("=", 1) for word in words[1:])
        known = defined_flags(ROOT / "scripts" / "train.py")
        assert {name for name in options if not name.startswith("config.")} <= known
        changes = [f"{name[7:]}={value}" for name, value in options.items() if name.startswith("config.")]
        assert load(options["config"], changes).mesh.fsdp == devices


def test_what_is_cited_is_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(reference["url"].rpartition("/")[2] in readme for reference in citation["references"])
