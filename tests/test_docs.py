"""The documentation says what the code does: links, commands, settings, defaults and names are compared with it."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from segshift import api, cli, recipes
from segshift.config import RunSettings, StageSettings, validated
from segshift.data import layouts
from segshift.data.domains import DomainSettings
from segshift.data.strong import StrongSettings
from segshift.engine.inference import Options
from segshift.engine.labelling import LabelSettings
from segshift.methods import METHODS
from segshift.nets import NETS, weights
from segshift.recipes import facts
from segshift.setup import stage_settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
GROUP: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
VERBS: dict[str, Any] = GROUP | {
    f"{group} {name}": command
    for group, verb in GROUP.items()
    for name, command in vars(verb).get("commands", {}).items()
}
"""Every command by its name, those below another one as "labels import"."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
every_method = pytest.mark.parametrize("name", METHODS)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """The contents of a page's code blocks in some languages."""
    return [content for language, content in FENCE.findall(text_of(page)) if language in languages]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text_of(page))


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all table rows."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def section(page: Path, title: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    text = text_of(page)
    found = re.search(rf"^(#+) {re.escape(title)} *$", text, re.MULTILINE)
    assert found, f"{page.name} has no section {title!r}"
    below = text[found.end() :]
    return re.split(rf"^#{{1,{len(found.group(1))}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def words(cell: str) -> list[str]:
    """The code in a table's cell."""
    return re.findall(r"`([^`]+)`", cell)


# ---- links


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = (page.parent / file).resolve() if file else page
        assert where.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and where.suffix == ".md":
            assert anchor in anchors(where), f"{page.name} links to {target}; known: {sorted(anchors(where))}"


# ---- commands


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `segshift …` in a page's shell blocks."""
    for block in blocks(page, "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words_of_line = shlex.split(line.removeprefix("$ "), comments=True)
            if words_of_line and words_of_line[0].rsplit("/", 1)[-1] == "segshift":
                yield words_of_line[1:]


def options_of(verb: str) -> set[str]:
    names = itertools.chain.from_iterable([*p.opts, *p.secondary_opts] for p in VERBS[verb].params)
    return {"--help", *(name for name in names if name.startswith("--"))}


@every_page
def test_commands_can_be_typed(page: Path) -> None:
    for arguments in commands(page):
        verb, *rest = arguments
        if verb == "--help":
            continue
        if "commands" in vars(GROUP.get(verb, cli)):
            verb, rest = f"{verb} {rest[0]}", rest[1:]
        assert verb in VERBS, f"{page.name}: segshift {verb}"
        VERBS[verb].make_context(verb, rest)  # parses, runs nothing


@every_page
def test_verbs_and_options_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        parts = code.split()
        if parts[0] == "segshift" and len(parts) > 1 and parts[1].isalpha() and parts[1].islower():
            verb = " ".join(parts[1:3]) if " ".join(parts[1:3]) in VERBS else parts[1]
            assert verb in VERBS, f"{page.name}: {code}"
            unknown = {p.split("=")[0] for p in parts if p.startswith("--")} - options_of(verb)
            assert not unknown, f"{page.name}: {code}"
        elif code.startswith("--"):
            known = set().union(*map(options_of, VERBS))
            assert parts[0].split("=")[0] in known, f"{page.name}: {code}"


def assignments(page: Path) -> list[str]:
    """Every `--set key=value` of a page; placeholders such as KEY=VALUE are none."""
    found = re.findall(r"--set (?:'([^']+)'|([^\s`']+))", text_of(page))
    pairs = [quoted or plain for quoted, plain in found]
    return [pair for pair in pairs if "=" in pair and not re.search(r"[A-Z]", pair.partition("=")[0])]


@every_page
def test_set_reaches_a_setting(page: Path) -> None:
    for pair in assignments(page):
        first = pair.split(".")[0]
        named = {"labels": "tpld"}.get(bare := re.sub(r"_\d+$", "", first), bare)  # cbst_1, labels_2 …
        method = named if named in METHODS else "advent"
        settings = api.compose(method=method, source="a", target="b", val="c", classes="d", set=[pair])
        for stage in settings.stages:
            stage_settings(stage)
        assert set(settings.net.options) <= net_options(), pair
        assert settings.net.name in NETS


def net_options() -> set[str]:
    return {name for builder in NETS.values() for name in builder_defaults(builder)}


def builder_defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    """Options of a network's builder with their defaults."""
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


# ---- tables of settings


def flat(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Names, with dots, and defaults of all settings of a model."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            found |= flat(type(field.default), f"{prefix}{name}.")
        else:
            found[prefix + name] = field.get_default(call_default_factory=True)
    return found


def same(written: str, default: Any) -> bool:
    """Whether a table's cell means a default."""
    value = yaml.safe_load(written) if written else None
    if isinstance(default, float):
        return value is not None and float(value) == default
    return bool(value == (list(default) if isinstance(default, tuple) else default))


@every_method
def test_every_setting_of_a_method_is_in_its_page(name: str) -> None:
    page = DOCS / "methods" / f"{name}.md"
    table = {words(cells[0])[0]: cells[1] for cells in rows(section(page, "Settings")) if words(cells[0])}
    settings = flat(METHODS[name].settings)
    listed = {key: written for key, written in table.items() if "=" not in key}
    assert set(listed) == set(settings)
    wrong = {key: written for key, written in listed.items() if not same(written, settings[key])}
    assert not wrong, f"{page.name}: other defaults in the code: { ({key: settings[key] for key in wrong}) }"


def test_every_page_of_a_method_has_its_method() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(METHODS)


@every_method
def test_functions_named_in_a_method_page_exist(name: str) -> None:
    page = DOCS / "methods" / f"{name}.md"
    source = "\n".join(text_of(path) for path in (ROOT / "src").rglob("*.py"))
    for cells in rows(section(page, "The step")):
        for code in words(cells[-1]):
            if (ROOT / "src" / "segshift" / code).exists():
                continue
            for word in re.findall(r"[A-Za-z_]\w+", code):
                assert re.search(rf"\b{word}\b", source), f"{page.name}: {code}"


def test_every_setting_of_a_run_is_in_its_page() -> None:
    listed = {word for cells in rows(section(DOCS / "runs.md", "All settings")) for word in words(cells[0])}
    assert listed == set(RunSettings.model_fields)
    for cells in rows(section(DOCS / "runs.md", "All settings")):
        for name in words(cells[0]):
            default = RunSettings.model_fields[name].get_default(call_default_factory=True)
            if isinstance(default, (int, float, bool)) or default == "auto" or (default is None and cells[1]):
                assert cells[1] == "none" or same(cells[1], default), name


def test_every_setting_of_a_labels_stage_is_in_its_page() -> None:
    table = [cells for cells in rows(section(DOCS / "self_training.md", "How pixels are chosen")) if len(cells) == 3]
    fields = LabelSettings.model_fields
    settings = {words(cells[0])[0]: cells for cells in table if words(cells[0]) and words(cells[0])[0] in fields}
    assert set(settings) == set(fields)
    for name, cells in settings.items():
        if cells[1]:
            assert same(cells[1], fields[name].default), name
    rules = set(get_args(fields["rule"].annotation))
    assert {words(cells[0])[0] for cells in table if words(cells[0])} == rules | {"rule"} | set(fields)


def test_every_key_of_a_stage_is_in_its_page() -> None:
    table = [cells for cells in rows(section(DOCS / "runs.md", "A stage")) if words(cells[0])]
    assert {name for cells in table for name in words(cells[0])} == set(StageSettings.model_fields)
    for cells in table:
        for name in words(cells[0]):
            default = StageSettings.model_fields[name].get_default(call_default_factory=True)
            assert not cells[1] or same(cells[1], default), name


def test_every_setting_of_strong_views_is_in_its_page() -> None:
    table = [cells for cells in rows(section(DOCS / "methods" / "proda.md", "Strong views")) if len(cells) == 3]
    listed = {words(cells[0])[0]: cells[1] for cells in table if words(cells[0])}
    settings = flat(StrongSettings, "strong.")
    assert set(listed) == set(settings)
    for name, written in listed.items():
        assert same(written.replace("1/3", str(1 / 3)), settings[name]), name


def test_examples_of_longer_adaptation_train_the_control_as_long() -> None:
    """Whoever copies such a command shall not credit adaptation with training time."""
    for page in PAGES:
        for arguments in commands(page):
            steps = dict(pair.split("=") for pair in arguments if re.fullmatch(r"\w+\.steps=\d+", pair))
            adapted = {value for key, value in steps.items() if not key.startswith("source_")}
            assert not adapted or adapted == {steps.get("source_control.steps")}, f"{page.name}: {arguments}"


def test_every_option_of_evaluation_is_in_its_page() -> None:
    table = rows(section(DOCS / "runs.md", "Test-time options"))
    listed = {word for cells in table if not cells[0].startswith("option") for word in words(cells[1])}
    assert listed == set(Options.model_fields)


def test_every_setting_of_a_domain_is_in_its_page() -> None:
    page = section(DOCS / "data.md", "data.yaml: the same with settings")
    listed = {words(cells[0])[0]: cells[1] for cells in rows(page) if words(cells[0])}
    assert set(listed) == set(DomainSettings.model_fields)
    for name, written in listed.items():
        assert name == "root" or same(written, DomainSettings.model_fields[name].default), name


def test_every_layout_is_in_its_page() -> None:
    listed = {words(cells[0])[0] for cells in rows(section(DOCS / "data.md", "Known layouts")) if words(cells[0])}
    assert listed - {"layout"} == set(layouts.LAYOUTS)


def test_every_network_and_option_is_in_its_page() -> None:
    page, network = DOCS / "networks.md", ""
    listed: dict[str, dict[str, str]] = {}
    for cells in rows(section(page, "Options")):
        network = words(cells[0])[0] if words(cells[0]) else network
        if words(cells[1]):
            listed.setdefault(network, {})[words(cells[1])[0]] = cells[2]
    assert set(listed) == set(NETS)
    for name, builder in NETS.items():
        defaults = builder_defaults(builder)
        assert set(listed[name]) == set(defaults), name
        for option, default in defaults.items():
            # `none` the word is not YAML's null; it is compared as it stands.
            written = listed[name][option]
            assert written == default or same(written, default), f"{name}: {option}"


def test_every_layout_of_published_weights_is_in_its_page() -> None:
    cells = rows(section(DOCS / "networks.md", "Published weights"))
    assert {words(first)[0] for first, *_ in cells if words(first)} - {"layout"} == set(weights.LAYOUTS)


# ---- recipes


def test_every_file_of_weights_that_recipes_read_is_in_its_page() -> None:
    listed = [
        words(cells[0])[0] for cells in rows(section(DOCS / "recipes.md", "Weights")) if cells[0].endswith(".pth`")
    ]
    assert sorted(listed) == sorted({file for name in recipes.names() for file in facts.weights(recipes.read(name))})


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_are_valid(name: str) -> None:
    settings = validated(RunSettings, recipes.read(name), name)
    assert settings.about
    assert settings.stages
    for stage in settings.stages:
        stage_settings(stage)


def test_every_method_has_its_recipe() -> None:
    assert {f"cpu/{name}" for name in METHODS} <= set(recipes.names())
