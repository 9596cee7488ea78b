"""Every dependency has a licence that deny.toml allows, and none is banned. The same rules as `cargo deny check`, for
machines that do not have it."""

import json
import re
import subprocess
import sys
import tomllib

with open("deny.toml", "rb") as file:
    rules = tomllib.load(file)
allowed = set(rules["licenses"]["allow"])
banned = {ban["crate"]: ban["reason"] for ban in rules["bans"]["deny"]}
metadata = json.loads(
    subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"],
        check=True, capture_output=True, text=True,
    ).stdout
)
used = {node["id"] for node in metadata["resolve"]["nodes"]}
wrong = []


def permits(expression):
    """Whether one side of every OR, and all sides of every AND, is allowed."""
    expression = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|[^()\s]+", expression)
    # `A WITH B` is one licence.
    text = " ".join(tokens)
    text = re.sub(r"(\S+) WITH (\S+)", lambda m: f"{m[1]}~{m[2]}", text)
    words = []
    for word in text.split():
        if word in ("(", ")"):
            words.append(word)
        elif word in ("AND", "OR"):
            words.append(word.lower())
        else:
            words.append(str(word.replace("~", " WITH ") in allowed))
    return eval(" ".join(words), {"__builtins__": {}})


for package in metadata["packages"]:
    if package["id"] not in used or package["source"] is None:
        continue
    name = f"{package['name']} {package['version']}"
    if package["name"] in banned:
        wrong.append(f"{name}: banned: {banned[package['name']]}")
    if not package["license"] or not permits(package["license"]):
        wrong.append(f"{name}: licence {package['license']!r} is not allowed by deny.toml")
print(f"{len(used)} packages looked at")
if wrong:
    sys.exit("\n".join(wrong))
