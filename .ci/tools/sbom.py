"""The SBOM (CycloneDX) of what is compiled into the relay for a target.

    python3 .ci/tools/sbom.py x86_64-unknown-linux-musl FILE

cargo-cyclonedx writes it. It lists all that the features could bring in, procedural macros and what only builds, and it
does not see the C inside of a crate: the first are taken out here, SQLite is put in.
"""
import json
import os
import re
import subprocess
import sys

NAME = "vauchi-relay"


def told(*command):
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout


def compiled_in(target):
    """Names and versions, as cargo links them."""
    lines = told("cargo", "tree", "--locked", "-e", "normal,no-proc-macro", "--target", target, "--prefix", "none",
                 "--format", "{p}").splitlines()
    return {(name, version[1:]) for name, version in (line.split()[:2] for line in lines if line)}


def sqlite():
    """The bundled SQLite, which advisories know under its own name."""
    packages = json.loads(told("cargo", "metadata", "--locked", "--format-version", "1"))["packages"]
    manifest = next(package["manifest_path"] for package in packages if package["name"] == "libsqlite3-sys")
    header = open(os.path.join(os.path.dirname(manifest), "sqlite3/sqlite3.h")).read()
    version = re.search(r'^#define SQLITE_VERSION +"(.*)"', header, re.M)[1]
    return {"type": "library", "bom-ref": f"sqlite@{version}", "name": "sqlite", "version": version, "scope": "required",
            "licenses": [{"license": {"id": "blessing"}}], "cpe": f"cpe:2.3:a:sqlite:sqlite:{version}:*:*:*:*:*:*:*",
            "purl": f"pkg:generic/sqlite@{version}"}


def main(target, file):
    # It writes beside Cargo.toml, and names this folder.
    written = f"{NAME}_bin.cdx.json"
    subprocess.run(["cargo", "cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5", "--no-build-deps",
                    "--describe", "binaries", "--target", target], check=True)
    text = open(written).read().replace(f"path+file://{os.getcwd()}", NAME).replace(f"file://{os.getcwd()}", "file://.")
    os.remove(written)
    bom = json.loads(text)

    wanted, added = compiled_in(target), sqlite()
    bom["components"] = [part for part in bom["components"] if (part["name"], part["version"]) in wanted]
    missing = wanted - {(part["name"], part["version"]) for part in bom["components"]}
    if {name for name, _ in missing} != {NAME}:
        sys.exit(f"cargo-cyclonedx does not list {missing}")
    bom["components"].append(added)
    kept = {part["bom-ref"] for part in [bom["metadata"]["component"], *bom["components"]]}
    bom["dependencies"] = [dict(entry, dependsOn=[on for on in entry.get("dependsOn", []) if on in kept])
                           for entry in bom["dependencies"] if entry["ref"] in kept]
    binding = next(entry for entry in bom["dependencies"] if "#libsqlite3-sys@" in entry["ref"])
    binding["dependsOn"].append(added["bom-ref"])
    bom["dependencies"].append({"ref": added["bom-ref"], "dependsOn": []})
    # Of each build another; the checksum of the file says more.
    bom.pop("serialNumber", None)
    with open(file, "w") as opened:
        json.dump(bom, opened, indent=1)
        opened.write("\n")


main(*sys.argv[1:])
