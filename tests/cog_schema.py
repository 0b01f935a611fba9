"""Makes `.cog/openapi_schema.json` from a predictor's source, as Cog's own tool does at build time.

It reads the file without running it and accepts only what that tool can resolve: literals, names
of literal lists in the same file, and `Class.attribute` for an `Input(...)` that a class of the
same file holds. Anything else raises, so that a predictor which could not be built fails the tests.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from typing import Any

TYPES = {"str": {"type": "string"}, "int": {"type": "integer"}, "float": {"type": "number"},
         "bool": {"type": "boolean"}, "Path": {"type": "string", "format": "uri"},
         "Secret": {"type": "string", "format": "password", "writeOnly": True,
                    "x-cog-secret": True}}  # fmt: skip

CONSTRAINTS = {"ge": "minimum", "le": "maximum", "min_length": "minLength",
               "max_length": "maxLength", "regex": "pattern"}  # fmt: skip


class UnresolvableError(Exception):
    """Cog's tool could not read this off the source."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


def schema_of(path: Path, predictor: str = "Predictor") -> dict[str, Any]:
    """The schema of the method `predict` of the class `predictor` in the file `path`."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    names = _literal_lists(tree)
    predict = _predict(tree, predictor)
    arguments = [argument for argument in predict.args.args if argument.arg != "self"]
    defaults = predict.args.defaults
    if len(defaults) != len(arguments):
        raise UnresolvableError("every input needs Input(...)")
    schemas: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    required = []
    for order, (argument, default) in enumerate(zip(arguments, defaults, strict=True)):
        values = _input(_resolved(default, tree), names, source)
        if "default" not in values:
            required.append(argument.arg)
        properties[argument.arg] = _property(argument, values, order, schemas)
    schemas["Output"] = {"title": "Output", **_output(predict.returns)}
    schemas["Input"] = {
        "title": "Input", "type": "object", "properties": properties, "required": required,
    }  # fmt: skip
    post: dict[str, Any] = {"summary": "Predict"}
    if any(isinstance(d, ast.Name) and d.id == "streaming" for d in predict.decorator_list):
        post["x-cog-streaming"] = True
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {"/predictions": {"post": post}},
        "components": {"schemas": schemas},
    }


def _literal_lists(tree: ast.Module) -> dict[str, list[Any]]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            if isinstance(value, list | tuple):
                found[node.targets[0].id] = list(value)
    return found


def _predict(tree: ast.Module, predictor: str) -> Function:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == predictor:
            for member in node.body:
                if isinstance(member, Function) and member.name == "predict":
                    return member
    raise UnresolvableError(f"no {predictor}.predict")


def _resolved(node: ast.expr, tree: ast.Module) -> ast.expr:
    """What `Class.attribute` stands for, if `node` is one; Cog takes the last that has the name."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
        return node
    for holder in tree.body:
        if isinstance(holder, ast.ClassDef) and holder.name == node.value.id:
            for member in reversed(holder.body):
                if isinstance(member, ast.Assign) and ast.unparse(member.targets[0]) == node.attr:
                    return member.value
    raise UnresolvableError(f"{ast.unparse(node)} is no attribute of a class in this file")


def _input(node: ast.expr, names: dict[str, list[Any]], source: str) -> dict[str, Any]:
    if not (
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Input" and not node.args
    ):
        raise UnresolvableError("an input's default must be Input(name=value, ...)")
    values = {}
    for keyword in node.keywords:
        if isinstance(keyword.value, ast.Name) and keyword.arg == "choices":
            if keyword.value.id not in names:
                raise UnresolvableError(
                    f"choices={keyword.value.id} is no literal list of this file"
                )
            values["choices"] = names[keyword.value.id]
        elif isinstance(keyword.value, ast.Constant | ast.List):
            values[str(keyword.arg)] = ast.literal_eval(keyword.value)
            _require_one_plain_string(keyword, source)
        else:
            raise UnresolvableError(f"{keyword.arg} is not a literal")
    return values


def _require_one_plain_string(keyword: ast.keyword, source: str) -> None:
    """Cog reads strings raw: no parentheses, no joining of neighbours, no escapes."""
    if not isinstance(getattr(keyword.value, "value", None), str):
        return
    segment = ast.get_source_segment(source, keyword) or ""
    tokens = list(tokenize.generate_tokens(io.StringIO(segment).readline))
    strings = [token.string for token in tokens if token.type == tokenize.STRING]
    if len(strings) != 1 or "\\" in strings[0] or "(" in segment.split("=", 1)[1][:1]:
        raise UnresolvableError(f"{keyword.arg} must be one plain string literal")


def _property(
    argument: ast.arg, values: dict[str, Any], order: int, schemas: dict[str, Any]
) -> dict[str, Any]:
    kind = TYPES.get(getattr(argument.annotation, "id", ""))
    if kind is None:
        raise UnresolvableError(f"{argument.arg} has a type that Cog does not know")
    title = argument.arg.replace("_", " ").title()
    described = {key: values[key] for key in ("default", "description") if key in values}
    if choices := values.get("choices"):
        schemas[argument.arg] = {
            "title": argument.arg, "description": "An enumeration.", "enum": choices, **kind,
        }  # fmt: skip
        reference = [{"$ref": f"#/components/schemas/{argument.arg}"}]
        return {"x-order": order, "allOf": reference, **described}
    limits = {CONSTRAINTS[key]: values[key] for key in values if key in CONSTRAINTS}
    if values.get("default", "") is None:
        if kind is not TYPES["Secret"]:
            raise UnresolvableError(f"{argument.arg}: only a Secret may be None by default")
        limits["nullable"] = True
    return {"x-order": order, "title": title, **kind, **limits, **described}


def _output(returns: ast.expr | None) -> dict[str, Any]:
    if isinstance(returns, ast.Name) and returns.id in TYPES:
        return dict(TYPES[returns.id])
    if (
        isinstance(returns, ast.Subscript)
        and getattr(returns.value, "id", "") == "ConcatenateIterator"
    ):
        return {
            "type": "array", "items": {"type": "string"},
            "x-cog-array-type": "iterator", "x-cog-array-display": "concatenate",
        }  # fmt: skip
    raise UnresolvableError("the output has a type that Cog does not know")
