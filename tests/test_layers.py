"""Data flows one way: no part imports one downstream of it."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

import mecap_jax

ROOT = Path(mecap_jax.__file__).parent
# Upstream first; what stands in one row may not import each other.
ORDER = (
    ("families", "field_types", "interruption", "shipped"),
    ("distributed", "emotions", "json_files", "locking", "model_config", "text_files", "threads"),
    ("command_line",),
    ("config", "batch", "tokenizer_files"),
    ("emotion_words", "sharding"),
    ("data",),
    ("models",),
    ("train_state",),
    ("throughput",),
    ("generation",),
    ("rewards",),
    ("rl",),
    ("training",),
    ("planning",),
    ("evaluation",),
    ("tasks",),
    ("experiment",),
    ("captioning",),
    ("captioner",),
    ("app",),
    ("__main__",),
)
RANK = {part: rank for rank, row in enumerate(ORDER) for part in row}
# Beyond the order: parts that know nothing of each other although one stands downstream.
STRANGERS = {
    "models": {"data"},
    "generation": {"data", "config"},
    "rewards": {"generation", "train_state"},
    "training": {"rl", "rewards"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mecap_jax":
                names = [f"mecap_jax.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("mecap_jax.")}
    return parts


MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_upstream(path):
    part = part_of(path)
    for other in imported_parts(path) - {part}:
        assert RANK[other] < RANK[part], f"{path.relative_to(ROOT)} imports {other}, which is downstream of {part}"
        assert other not in STRANGERS.get(part, ()), f"{path.relative_to(ROOT)} must know nothing of {other}"


def test_workers_import_no_jax():
    """Reader processes run what is in `data`; one that imported jax could grab the accelerator."""
    for path in (ROOT / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ())] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] in ("jax", "flax", "optax")], path


def test_what_the_code_imports_is_what_it_declares():
    """No dependency is missing, and none is installed for nothing."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line).group().lower().replace("_", "-") for line in project["dependencies"]}
    files = [path for part in ("mecap_jax", "scripts", "configs") for path in (ROOT.parent / part).rglob("*.py")]
    modules = set().union(*map(_imported_modules, files)) - set(sys.stdlib_module_names)
    modules -= {"mecap_jax", "benchmarks"}
    names = importlib.metadata.packages_distributions()
    extras = {"sentence_transformers", "apache_beam", "gradio", "starlette"}  # what extras bring
    imported = {names[module][0].lower().replace("_", "-") for module in modules - extras}
    assert imported - {"jaxlib"} == declared


def _imported_modules(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names}
