"""Fields that ask for a form of the answer: good ones, bad ones, and some that mean harm."""

from __future__ import annotations

import time
from typing import Any

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def named(schema: Any, **fields: Any) -> dict[str, Any]:
    """OpenAI's field for a schema."""
    described = {"name": "thing", "schema": schema, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def outputs(**fields: Any) -> dict[str, Any]:
    """vLLM's field."""
    return {"structured_outputs": fields}


_POINTS = ['{"x":1,"y":2}', '{"x": 1, "y": -2}', '{\n  "x": 10,\n  "y": 0\n}']
_NO_POINTS = ["{}", '{"x":1}', '{"x":1,"y":2,"z":3}', '{"x":1.5,"y":2}', ' {"x":1,"y":2}', "1", ""]

GOOD: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (named(POINT, strict=True), _POINTS, _NO_POINTS),
    (named(POINT), _POINTS, _NO_POINTS),
    (named(POINT, strict=None, description="a point"), _POINTS, _NO_POINTS),
    (named(True), ["1", "[]", '{"a": null}'], ["", "x"]),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, ["1"], ["x"]),
    (named({**POINT, "x-guidance": {"whitespace_pattern": "_"}}), _POINTS, ['{_"x":1,"y":2}']),
    (named({"type": "array", "uniqueItems": True}, strict=False), ["[1, 1]"], ["{}"]),
    ({"response_format": {"type": "json_object"}}, ["{}", '{"a": [1, {}]}'], ["[]", "1", "{"]),
    (outputs(json=POINT), _POINTS, _NO_POINTS),
    (outputs(json='{"type": "boolean"}'), ["true", "false"], ["True", "1"]),
    (outputs(json=POINT, disable_any_whitespace=True), _POINTS[:1], _POINTS[1:]),
    (
        outputs(json=POINT, whitespace_pattern=" {0,2}"),
        _POINTS[:2],
        [_POINTS[2], '{"x":   1,"y":2}'],
    ),
    (outputs(json_object=True), ["{}"], ["[]"]),
    (outputs(regex="[0-9]{2}|x"), ["42", "x"], ["4", "421", "x4", ""]),
    (
        outputs(choice=["yes", "no", 'a "b"\n\\', "größe 語"]),
        ["yes", 'a "b"\n\\', "größe 語"],
        ["ye"],
    ),
    (outputs(choice=["only"]), ["only"], ["", "onlyonly"]),
    (outputs(choice=["a", "ab", "abc"]), ["a", "ab", "abc"], ["b", "abcd"]),
    (outputs(grammar='start: "a"+ b\nb: /[0-9]/'), ["a1", "aaa9"], ["a", "1"]),
    (outputs(grammar='root ::= "a" item*\nitem ::= [0-9]'), ["a", "a12"], ["1", "b"]),
    (outputs(choice=["a ::= b"]), ["a ::= b"], ["b"]),
    (outputs(grammar='// a ::= b\nstart: "a ::= b" | x\nx: "::="'), ["a ::= b", "::="], ["b"]),
    (outputs(grammar='# of two\n  root-rule ::= "b"\nroot ::= root-rule'), ["b"], ["a"]),
    (outputs(json={"const": "a ::= b"}), ['"a ::= b"'], ['"b"']),
    ({"guided_json": POINT}, _POINTS, _NO_POINTS),
    ({"guided_regex": "a+"}, ["a", "aa"], ["", "b"]),
    ({"guided_choice": ["a", "b"]}, ["a", "b"], ["c"]),
    ({"guided_grammar": 'start: "x"'}, ["x"], ["y"]),
]

_RECURSIVE = {
    "$ref": "#/$defs/a",
    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
}
_FORMAT, _SCHEMA = "response_format", "response_format.json_schema.schema"
_OUTPUTS = "structured_outputs"

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"response_format": {}}, "response_format.type", "required"),
    ({"response_format": "json_object"}, "response_format", ""),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a"}}},
        "response_format.json_schema",
        "json_schema only",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "required",
    ),
    (named(POINT, name="two words"), "response_format.json_schema.name", "pattern"),
    (named(POINT, name="x" * 65), "response_format.json_schema.name", "pattern"),
    (named(POINT, strict="yes"), "response_format.json_schema.strict", "boolean"),
    (named(POINT, other=1), "response_format.json_schema.other", "not a known field"),
    (named(None, strict=True), _SCHEMA, "required"),
    (named("{}"), _SCHEMA, "an object, or a boolean"),
    (named([1]), _SCHEMA, "an object, or a boolean"),
    (named({"type": "strin"}), _SCHEMA, "Invalid type"),
    (named(False), _SCHEMA, ""),
    (named({"type": "array", "uniqueItems": True}), _SCHEMA, "uniqueItems"),
    (named({"$ref": "http://localhost:1/schema.json"}), _SCHEMA, ""),
    (named({"$ref": "#/$defs/nothing"}), _SCHEMA, ""),
    (named({"enum": []}), _SCHEMA, ""),
    (named(_RECURSIVE), _SCHEMA, ""),
    (named({"type": "string", "pattern": "(?=a)b"}), _SCHEMA, ""),
    (named({"type": "integer", "minimum": 5, "maximum": 4}), _SCHEMA, ""),
    (outputs(json=POINT, regex="a"), _OUTPUTS, "json and regex"),
    (outputs(disable_any_whitespace=True), _OUTPUTS, "exactly one of json, regex"),
    (outputs(regex="a", whitespace_pattern=" "), f"{_OUTPUTS}.whitespace_pattern", "JSON only"),
    (
        outputs(json=POINT, whitespace_pattern=" ", disable_any_whitespace=True),
        f"{_OUTPUTS}.whitespace_pattern",
        "can't go with",
    ),
    (outputs(json=POINT, whitespace_pattern="("), f"{_OUTPUTS}.json", ""),
    (outputs(json="{"), f"{_OUTPUTS}.json", "no JSON"),
    (outputs(json=3), f"{_OUTPUTS}.json", "an object, or a boolean"),
    (outputs(regex="("), f"{_OUTPUTS}.regex", ""),
    (outputs(regex=""), f"{_OUTPUTS}.regex", "empty"),
    (outputs(regex="(?=a)b"), f"{_OUTPUTS}.regex", "look-around"),
    (outputs(json='{"enum": ["\\ud800"]}'), f"{_OUTPUTS}.json", "surrogate"),
    (outputs(choice=[]), f"{_OUTPUTS}.choice", "at least 1"),
    (outputs(choice=["a", ""]), f"{_OUTPUTS}.choice", "empty"),
    (outputs(choice="a"), f"{_OUTPUTS}.choice", "array"),
    (outputs(grammar="start: nothing"), f"{_OUTPUTS}.grammar", ""),
    (outputs(grammar="root ::= ("), f"{_OUTPUTS}.grammar", ""),
    (outputs(structural_tag={"x": 1}), f"{_OUTPUTS}.structural_tag", ""),
    (outputs(backend="xgrammar"), f"{_OUTPUTS}.backend", "not a known field"),
    ({"guided_regex": "("}, "guided_regex", ""),
    ({"guided_json": POINT, "guided_regex": "a"}, "guided_regex", "not both"),
    ({**named(POINT), **outputs(regex="a")}, _OUTPUTS, "not both"),
]


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


_WIDE = [
    {
        "anyOf": [
            {"type": "object", "properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(6)
        ]
    }
    for i in range(8)
]
_DOUBLING = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)} | {
    "d30": {"type": "string"}
}

HOSTILE: list[dict[str, Any]] = [
    {"guided_regex": "(a{1,60000}){1,60000}"},
    {"guided_regex": "((((((a{1,100}){1,100}){1,100}){1,100}){1,100}){1,100}){1,100}"},
    {"guided_regex": "(" * 4000 + "a" + ")" * 4000},
    {"guided_regex": "(a|" * 2000 + "b" + ")" * 2000},
    {"guided_regex": "a{1,100000000}"},
    {"guided_regex": r"\w{1,5000}\p{L}{2000}"},
    {"guided_regex": "(a|b)*a" + "(a|b)" * 1000},
    {"guided_regex": "|".join(f"x{i}y*" for i in range(900))},
    {"guided_regex": "(.*a){20}(.*b){20}(.*c){20}"},
    {"guided_grammar": 'start: "a"{1,100000000}'},
    {"guided_grammar": "start: a{1,1000}\na: b{1,1000}\nb: c{1,1000}\nc: /x/{1,1000}"},
    {"guided_grammar": 'start: start start | start start start | "a" |'},
    {"guided_grammar": "start: " + "(" * 9000 + '"a"' + ")" * 9000},
    {"guided_grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000},
    {"guided_grammar": 'root ::= "a"{1,100000000}'},
    {"guided_grammar": "start: " + " | ".join(f"r{i}" for i in range(3000))},
    {"guided_choice": [f"{i:08d}" for i in range(2048)]},
    {"guided_choice": ["x" * 60000]},
    {"guided_json": {"type": "string", "maxLength": 10**9, "minLength": 10**8}},
    {"guided_json": {"type": "string", "pattern": "(a{1,1000}){1,1000}"}},
    {"guided_json": {"type": "array", "minItems": 10**8}},
    {
        "guided_json": {
            "type": "array",
            "items": {"type": "array", "minItems": 5000},
            "minItems": 5000,
        }
    },
    {"guided_json": {"type": "object", "minProperties": 10**7}},
    {"guided_json": {"type": "number", "multipleOf": 1e-300}},
    {"guided_json": {"type": "integer", "minimum": -(10**300), "maximum": 10**300}},
    {"guided_json": {"allOf": _WIDE}},
    {"guided_json": {"$ref": "#/$defs/d0", "$defs": _DOUBLING}},
    {"guided_json": {"$ref": "#"}},
    {"guided_json": _RECURSIVE},
    {"guided_json": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    {"guided_json": _nested(30)},
    {"guided_json": {"enum": [f"{i:05d}" for i in range(15000)]}},
    {"guided_json": {"properties": {f"p{i}": {"type": "string"} for i in range(6000)}}},
    {"guided_json": {"oneOf": [{"type": "object", "minProperties": i} for i in range(60)]}},
    {"guided_json": {"patternProperties": {f"^(a|b)*{i}(a|b){{20}}": True for i in range(60)}}},
    {"guided_json": '{"a":' * 3000 + "1" + "}" * 3000},
    {"guided_json": _nested(200)},
    {"structured_outputs": {"json": True, "whitespace_pattern": "((a*)*)*{1,9999}"}},
]


def slow(grammar: object) -> object:
    """Stands in for a check that takes its time."""
    time.sleep(0.05)
    return grammar, None


def hang(grammar: object) -> object:
    """Stands in for a check that never ends."""
    time.sleep(60)
    return grammar
