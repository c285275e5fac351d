"""Registries, the grammar of settings, identities."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.component import Spec, build, canonical, coerce, parse, parse_one, split
from bench.errors import UsageError
from bench.registry import ARCHS, METHODS, RECIPES, REGISTRIES, Registry, load_plugin
from bench.store import key_of

PLUGIN = '''
from dataclasses import dataclass
from bench.method import Method
from bench.registry import METHODS

@METHODS.register("{name}")
@dataclass(frozen=True)
class Extra(Method):
    """{summary}"""
'''


@pytest.fixture
def plugin(tmp_path: Path):
    """Writes a plug-in; forgets it afterwards."""
    path = tmp_path / "extra.py"

    def write(name: str, summary: str = "An extra method.") -> str:
        path.write_text(PLUGIN.format(name=name, summary=summary))
        return str(path)

    yield write
    METHODS.forget(path)


def test_every_component_has_a_name_a_summary_and_a_class() -> None:
    for registry in REGISTRIES:
        assert registry.entries, registry.kind
        for name, entry in registry.entries.items():
            assert name == name.lower()
            assert 10 < len(entry.summary) < 100, entry.origin
            assert registry.get(name).name == name


def test_names_are_read_without_importing(tmp_path: Path) -> None:
    file = tmp_path / "explosive.py"
    file.write_text(PLUGIN.format(name="boom", summary="Read, not run.") + "\nraise SystemExit\n")
    registry = Registry("method", "METHODS", "methods")
    assert registry.add_plugin(file) == 1
    assert registry.entries["boom"].summary == "Read, not run."


def test_a_plugin_is_found_and_its_settings_work(plugin) -> None:
    load_plugin(plugin("extra"))
    assert METHODS.entry("extra").summary == "An extra method."
    assert build(METHODS, parse_one("extra", METHODS)).name == "extra"


def test_a_clash_names_both_places(plugin) -> None:
    load_plugin(plugin("sep"))
    with pytest.raises(UsageError, match=r"'sep' is defined twice: methods/sep.py:\d+ and .*extra"):
        METHODS.entry("sep")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is not a file"), ("x = 1", "registers nothing"), ("def (", "not valid Python")],
)
def test_bad_plugins_say_why(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "bad.py"
    if content is not None:
        file.write_text(content + ("" if "=" in content else "  # METHODS.register"))
    with pytest.raises(UsageError, match=words):
        load_plugin(str(file))


def test_an_installed_distribution_adds_methods(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "theirs.py").write_text(PLUGIN.format(name="theirs", summary="From elsewhere."))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unlearnable_bench.methods]\ntheirs = theirs:Extra\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("method", "METHODS", "methods")
    assert registry.entries["theirs"].summary == "From elsewhere."


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'sepp'; did you mean sep"):
        parse("sepp", METHODS)


def test_patterns() -> None:
    named = [spec.name for spec in parse("sep-fa*", METHODS)]
    assert named == ["sep-fa", "sep-fa-l2", "sep-fa-vr", "sep-fa-vr-l2"]
    everything = [spec.name for spec in parse("all", METHODS)]
    assert "clean" in everything
    assert "file" not in everything, "a pattern cannot give the path that it needs"
    assert "clean-part" not in everything, "it makes no sense when everything is protected"
    with pytest.raises(UsageError, match="no method matches 'zz\\*'"):
        parse("zz*", METHODS)


def test_settings_belong_to_the_name_before_them() -> None:
    specs = parse("sep:checkpoints=5,surrogate=vgg16,noise,cuda:kernel=5", METHODS)
    assert specs == [
        Spec("sep", None, {"checkpoints": "5", "surrogate": "vgg16"}),
        Spec("noise"),
        Spec("cuda", None, {"kernel": "5"}),
    ]


def test_brackets_keep_commas_together() -> None:
    (spec,) = parse("sep:surrogate=(dn121:growth=32,width=0.5),steps=3", METHODS)
    assert spec.settings == {"surrogate": "dn121:growth=32,width=0.5", "steps": "3"}


def test_an_argument_follows_the_colon() -> None:
    (spec,) = parse("timm:resnet18", ARCHS)
    assert spec == Spec("timm", "resnet18")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no method given"),
        (",,", "no method given"),
        ("steps=3", "stands before any method"),
        ("sep:", "ends after the colon"),
        ("sep:fast", "not of the form key=value"),
        ("sep:steps=3,steps=4", "given twice"),
        ("sep:(steps=3", "unbalanced brackets"),
    ],
)
def test_malformed_lists(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text, METHODS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sep:stepz=3", "no setting 'stepz'; did you mean steps"),
        ("sep:steps=many", "write a whole number"),
        ("sep:epsilon=8/0", "fraction such as 8/255"),
        ("sep:epsilon=nan", "finite"),
        ("sep:epsilon=2", "between 0 and 1"),
        ("sep:checkpoints=0", "checkpoints must be 1 or more"),
        ("noise:law=cauchy", "choose from uniform, gaussian"),
        ("cuda:kernel=4", "odd"),
    ],
)
def test_wrong_settings(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(METHODS, parse_one(text, METHODS))


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("8/255", float, 8 / 255),
        ("1e-3", float, 0.001),
        ("yes", bool, True),
        ("0", bool, False),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("[14,24,35]", tuple[int, ...], (14, 24, 35)),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_values(text: str, hint: object, value: object) -> None:
    assert coerce(text, hint) == value


def test_presets_shorten_and_typed_settings_win() -> None:
    paper = build(METHODS, Spec("sep"))
    quick = build(METHODS, Spec("sep"), "quick")
    typed = build(METHODS, Spec("sep", None, {"steps": "11"}), "quick")
    assert (paper.checkpoints, paper.steps) == (30, 30)
    assert (quick.checkpoints, quick.steps) == (3, 4)
    assert (typed.checkpoints, typed.steps) == (3, 11)
    shortened = {"checkpoints": [3, 30], "steps": [4, 30], "step_size": [2 / 255, 1 / 255]}
    shortened |= {"target_shift": [1, None], "surrogate_recipe": ["victim", "own"]}
    assert quick.deviations() == shortened


def test_given_values_stand_between_preset_and_typed() -> None:
    spec = Spec("rn18", None, {"width": "0.5"})
    assert build(ARCHS, Spec("rn18"), "quick", {"width": 0.25}).width == 0.25
    assert build(ARCHS, spec, "quick", {"width": 0.25}).width == 0.5


@given(
    steps=st.integers(0, 1000),
    epsilon=st.floats(0, 1),
    shift=st.none() | st.integers(-9, 9),
    surrogate=st.sampled_from(["rn18", "vgg16", "dn121:growth=32,width=0.5"]),
)
def test_canonical_text_gives_the_component_back(steps, epsilon, shift, surrogate) -> None:
    made = replace(
        build(METHODS, Spec("sep-fa-vr")),
        steps=steps,
        epsilon=epsilon,
        target_shift=shift,
        surrogate=surrogate,
    )
    assert build(METHODS, parse_one(canonical(made, METHODS), METHODS)) == made


def test_another_version_is_another_identity(monkeypatch) -> None:
    noise = build(METHODS, Spec("noise"))
    before = noise.identity()
    monkeypatch.setattr(type(noise), "version", 2)
    assert key_of(noise.identity()) != key_of(before)


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("paper", "7264e308551404c75c49d11e7971e4f2e2a0496aad3c198e9729c0e1eb0b62e2"),
        ("standard", "8be63559f3b58c9dabe7c6da71f4ab614660b1dd5b44baf8a8a7b8d09e48f124"),
        ("quick", "6d5c4ed6b3c8b51e7fac8e16254c2e78373d8d7b268c1fafe022bc35ff77d79e"),
    ],
)
def test_settings_that_came_later_leave_recipes_who_they_were(text: str, golden: str) -> None:
    # `paper`'s was worked out before `decay`, `shuffle` and `drop_last` were there.
    recipe = build(RECIPES, Spec(text))
    assert key_of(recipe.identity()) == golden
    for changed in ({"decay": 0.5}, {"shuffle": False}, {"drop_last": True}):
        assert replace(recipe, **changed).settings() == recipe.settings() | changed


def test_keys_do_not_depend_on_order_or_process() -> None:
    assert key_of({"a": 1, "b": [0.1]}) == key_of({"b": [0.1], "a": 1})
    # Worked out with hashlib alone: keys must not drift between versions.
    golden = "5d8bc4dd17cfb3212cf5e44a61b66ad62ffd44ba79274c13e2828d1012ae32b4"
    assert key_of({"name": "sep", "epsilon": 8 / 255}) == golden


@given(st.text("ab,=:()[]'", max_size=20))
def test_split_cuts_only_outside_brackets_or_complains(text: str) -> None:
    try:
        pieces = split(text)
    except UsageError:
        return
    assert ",".join(pieces).replace(",", "") == text.replace(",", "")
    assert all(piece for piece in pieces)


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("file:Bob's photos", "Bob's photos"),
        ("file:it's.npz,epsilon=0.1", "it's.npz"),
        ("file:'a, b+noise (1).npz'", "a, b+noise (1).npz"),
        ('file:"it\'s, (really)"', "it's, (really)"),
        ("file:'it's, odd'", "it's, odd"),
        ("file:'a+noise'", "a+noise"),
        ("file:'x=1.npz'", "x=1.npz"),
        ("file:path='a]b'", "a]b"),
    ],
)
def test_names_with_odd_signs_can_be_typed(typed: str, path: str) -> None:
    (spec,) = parse(typed, METHODS)
    assert (spec.name, spec.argument) == ("file", path)


@pytest.mark.parametrize("typed", ["file:a(b.npz", "file:a, b", "file:'a, b"])
def test_errors_show_how_names_with_odd_signs_are_typed(typed: str) -> None:
    with pytest.raises(UsageError, match="in quotes, as file:"):
        parse(typed, METHODS)
