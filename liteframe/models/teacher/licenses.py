"""What the license of weights means for weights that were made from them. No legal advice: the license decides."""

from pathlib import Path

from huggingface_hub import metadata_load

UNSETTLED = "whether a distilled student is derived from its teacher in their sense is not settled"
FREE = "notices to keep"
# By the identifier in a model card, in lower case.
TERMS = {
    "apache-2.0": FREE,
    "mit": FREE,
    "bsd-3-clause": FREE,
    "cc-by-4.0": "its authors to name",
    "nvidia-open-model-license": "may be used commercially; notices to pass on",
    "gemma": "its rules of use are to be passed on to whoever gets the student",
    "qwen-community-1.0": "bounds on large commercial use; read them before the student is passed on",
    "dinov3-license": f"terms that derived works must carry on; {UNSETTLED}, so take it that they bind the student",
}
# Identifiers that contain one of these forbid commercial use.
NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research", "amlr")
NO_COMMERCE = f"no commercial use; {UNSETTLED}, so take it that the student may not be used commercially either"


def consequence(license: str | None) -> str:
    """What a license means for a student of such a teacher, in a few words."""
    name = (license or "").lower()
    if any(part in name for part in NON_COMMERCIAL):
        return NO_COMMERCE
    if license is None:
        return "not stated: see the teacher's card"
    return TERMS.get(name, "read it before the student is passed on")


def warning(license: str | None) -> str | None:
    """The consequence where it restricts what may be done with the student; None where notices are all."""
    return None if license is None or consequence(license) == FREE else consequence(license)


def license_of(card: Path | str | None) -> str | None:
    """The license that the front matter of a model card states, by its name where it is none of the hub's own."""
    values = (metadata_load(card) or {}) if card else {}
    license = values.get("license")
    if license == "other":
        license = values.get("license_name") or license
    return license if isinstance(license, str) else None
