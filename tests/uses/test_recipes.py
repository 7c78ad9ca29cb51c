"""Recipes of merges: numbers along layers and conditions, and files that are refused by name.

Holds: tests of ``secant.uses.recipes`` and ``secant.uses.recipe_files``.
May import: pytest, ``secant``.
"""

import pytest

from secant.errors import InputError
from secant.uses.recipe_files import read_recipe
from secant.uses.recipes import Part, Recipe, places_of

LINEAR = """
merge_method: linear
models:
  - model: a
    parameters: {weight: 0.3}
  - model: b
    parameters: {weight: 0.7}
dtype: bfloat16
out_dtype: float32
"""
SLICED = """
slices:
  - sources:
      - model: a
        layer_range: [0, 3]
      - model: b
        layer_range: [0, 3]
merge_method: slerp
base_model: b
tokenizer_source: base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - filter: mlp
      value: [1, 0]
    - value: 1e-1
"""
TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters:
      density: [1, 0.5]
      weight:
        - filter: mlp
          value: 0.9
  - model: b
parameters:
  weight: 0.25
  density: 0.75
  normalize: false
  lambda: 2
  int8_mask: true
"""


def read(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    return read_recipe(tmp_path / "r.yaml")


def test_models_and_types_are_read(tmp_path):
    recipe = read(tmp_path, LINEAR)
    assert recipe.models == ("a", "b")
    assert recipe.numbers("x", 0.0).weights == (0.3, 0.7)
    assert recipe.numbers("x", 0.0).whole == {"normalize": True}
    assert (recipe.kind.name, recipe.out_kind.name, recipe.keeper) == ("BF16", "F32", "a")


def test_gradients_run_along_the_layers_and_the_first_condition_counts(tmp_path):
    recipe = read(tmp_path, SLICED)
    assert (recipe.models, recipe.keeper, recipe.layers) == (("b", "a"), "b", 3)
    names = ["embed", *(f"layers.{i}.{part}.w" for i in range(3) for part in ("self_attn", "mlp"))]
    places, layers = places_of(names)
    assert layers == 3
    t = {name: recipe.numbers(name, places[name]).whole["t"] for name in names}
    assert [t[f"layers.{i}.self_attn.w"] for i in range(3)] == [0, 0.5, 1]
    assert [t[f"layers.{i}.mlp.w"] for i in range(3)] == [1, 0.5, 0]
    assert t["embed"] == 0.1


def test_what_is_a_models_own_goes_first_and_the_rest_falls_through(tmp_path):
    recipe = read(tmp_path, TIES)
    assert recipe.models == ("base", "a", "b")
    mlp, other = recipe.numbers("0.mlp", 1.0), recipe.numbers("0.attn", 0.0)
    assert (mlp.weights, other.weights) == ((0.9, 0.25), (0.25, 0.25))
    assert (mlp.densities, other.densities) == ((0.5, 0.75), (1, 0.75))
    assert mlp.whole == {"normalize": False, "lambda": 2.0, "int8_mask": True}


def test_stacks_are_counted_apart():
    names = ["enc.0.w", "enc.1.w", "enc.2.w", "dec.0.w", "0.w", "1.4.w", "head.w", "conv1.w"]
    places, layers = places_of(names)
    assert layers == 3
    assert places == {
        "enc.0.w": 0, "enc.1.w": 0.5, "enc.2.w": 1, "dec.0.w": 1, "0.w": 0, "1.4.w": 1,
        "head.w": 0, "conv1.w": 0,
    }  # fmt: skip


def test_a_recipe_is_written_as_it_is_read(tmp_path):
    import json

    for text in (LINEAR, TIES):
        recipe = read(tmp_path, text)
        assert read(tmp_path, json.dumps(recipe.table())) == recipe


REFUSED = {
    "no table": ("[]", "must be a table"),
    "no YAML": ("a: [", "cannot be read"),
    "code": ("!!python/object/apply:os.system [ls]", "cannot be read"),
    "twice": (LINEAR + "\ndtype: float32", "'dtype' stands twice"),
    "no method": ("models: [{model: a}]", "no merge_method"),
    "method": (LINEAR.replace("linear", "model_stock"), "'model_stock' is not one of linear"),
    "key": (LINEAR + "\nchat_template: auto", "key 'chat_template'"),
    "modules": (LINEAR + "\nmodules: {}", "key 'modules'"),
    "tokenizer": (LINEAR + "\ntokenizer: {source: union}", "key 'tokenizer'"),
    "model key": (LINEAR.replace("parameters:", "weights:"), "key 'weights'"),
    "parameter": (LINEAR.replace("weight:", "wieght:"), "no parameter 'wieght'"),
    "of another method": (LINEAR.replace("weight: 0.3", "density: 0.3"), "no parameter 'density'"),
    "of the whole": (TIES.replace("lambda: 2", "rescale: true"), "no parameter 'rescale'"),
    "of a model": (LINEAR.replace("0.3}", "0.3, normalize: true}"), "no parameter 'normalize'"),
    "of the base": (TIES.replace("- model: base", "- {model: base, parameters: {weight: 1}}"),
                    "the base 'base' has parameters"),
    "models and slices": (LINEAR + "\nslices: []", "either models or slices"),
    "no models": ("merge_method: linear", "either models or slices"),
    "empty": ("merge_method: linear\nmodels: []", "models must be a list"),
    "one": ("merge_method: linear\nmodels: [{model: a}]", "2 models or more; got 1"),
    "three for slerp": (LINEAR.replace("linear", "slerp\nbase_model: c"), "no parameter 'weight'"),
    "no base": (TIES.replace("base_model: base", ""), "merges changes from a base"),
    "strange base": (LINEAR + "\nbase_model: c", "'c' is not among its models"),
    "model of a table": ("merge_method: linear\nmodels: [{model: {path: a}}]", "must be a path"),
    "type": (LINEAR.replace("bfloat16", "int8"), "type 'int8' is not one of"),
    "two slices": (SLICED.replace("merge_method", "  - sources: []\nmerge_method"), "2 slices"),
    "part of the layers": (SLICED.replace("[0, 3]", "[1, 3]"), "layer_range must be"),
    "other layers": (SLICED.replace("[0, 3]", "[0, 2]", 1), "layer_range must be"),
    "union": (SLICED.replace("source: base", "source: union"), "tokenizer_source 'union'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, case):
    text, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        read(tmp_path, text)


VALUES = {
    "text": ("half", "must be a number"),
    "truth": (True, "must be a number"),
    "nan": (float("nan"), "must be a number"),
    "mixed": ([0.1, {"value": 1}], "must be a number"),
    "condition": ([{"filter": "a"}], "must be conditions"),
    "condition's key": ([{"filter": "a", "value": 1, "else": 2}], "must be conditions"),
    "no fit": ([{"filter": "mlp", "value": 1}], "has no weight for 'x'"),
    "empty": ([], "has no weight for 'x'"),
}


@pytest.mark.parametrize("case", VALUES)
def test_bad_values_are_refused(case):
    value, words = VALUES[case]
    recipe = Recipe("linear", (Part("a", {"weight": value}), Part("b", {"weight": 1})))
    with pytest.raises(InputError, match=words):
        recipe.numbers("x", 0.0)


def test_a_share_beyond_all_is_refused():
    recipe = Recipe("ties", (Part("a", {"weight": 1, "density": 1.5}),), base="b")
    with pytest.raises(InputError, match=r"density must be from 0 to 1; 1\.5 for 'x'"):
        recipe.numbers("x", 0.0)


def test_truths_are_true_or_false():
    recipe = Recipe("linear", (Part("a"), Part("b")), levels=({"weight": 1, "normalize": "yes"},))
    with pytest.raises(InputError, match="normalize must be true or false; got 'yes'"):
        recipe.numbers("x", 0.0)
