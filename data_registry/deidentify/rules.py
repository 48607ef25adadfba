"""From Table E.1-1, a profile and our policy to the treatment of one attribute."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from data_registry.deidentify import treatments
from data_registry.deidentify.actions import Action, resolve, row_of
from data_registry.deidentify.dictionary import dictionary_vr, keyword_of
from data_registry.deidentify.policy import policy
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.treatments import Treatment

Mode = Literal["clean", "dummy"]
"""How a sequence that stays is treated: cleaned, or with a dummy for every text (action D)."""

PATIENT_NAME, PATIENT_ID, ETHNIC_GROUP = 0x00100010, 0x00100020, 0x00102160
CODE_VALUE, SCHEME, CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_CODE_VALUES = (CODE_VALUE, 0x00080119, 0x00080120)
TEXT_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
_BINARY_VRS = frozenset(b"AT FD FL SL SS SV UL US UV OB OD OF OL OV OW".split())
_BULK_VRS = frozenset(b"OB OD OF OL OV OW".split())
_FREE_TEXT = frozenset(b"LT ST UT".split())
_DESCRIBES = re.compile("Description|Comment|Notes|Text$|Reasons|ProtocolName|DataSetName")
"""Keywords of unlisted attributes that a person types in."""


@dataclass(frozen=True)
class Rule:
    """What happens to an attribute.

    Args:
        action: Letter of PS3.15 for the audit.
        treat: Of its value; `keep` and `remove` need not look at it. For a sequence: `keep` to go
            into its items, `empty` for no items, `remove`.
        mode: For a sequence whose items are gone into.
    """

    action: Action
    treat: Treatment
    mode: Mode = "clean"


REMOVED = Rule("X", treatments.remove)


def find_rule(
    profile: Profile, sop_class: str, within: int, mode: Mode, tag: int, vr: bytes
) -> Rule:
    """The rule of a standard attribute.

    Args:
        profile: Basic Profile and options.
        sop_class: UID of the object's class.
        within: Tag of the sequence around it; 0 at the top.
        mode: Of that sequence.
        tag: The attribute.
        vr: As the file states it.
    """
    row = row_of(tag)
    vr = _judged_by(tag, vr)
    known = dictionary_vr(tag) != b"UN" or row is not None
    if not known or tag & 0xFFFF == 0 or not _fits(tag, vr):
        return REMOVED
    if row is None:
        extra = policy().extra.get(tag)
        return Rule(extra, treatments.remove) if extra == "X" else _unlisted(profile, tag, vr, mode)
    basic = resolve(row.basic, tag, within, sop_class)
    action = resolve(row.action(profile), tag, within, sop_class)
    return _listed(action, basic, tag, vr)


def is_damaged(tag: int, vr: bytes) -> bool:
    """Whether an attribute without which the object cannot be read has a wrong VR."""
    return tag in policy().structure and not _fits(tag, _judged_by(tag, vr))


def _judged_by(tag: int, vr: bytes) -> bytes:
    """The VR of the dictionary for values stored as UN (PS3.5 6.2.2) and for text of another VR.

    A name in place of a number is then judged as a number, and goes.
    """
    known = dictionary_vr(tag)
    if vr == b"UN" or (known != b"UN" and known in TEXT_VRS and vr in TEXT_VRS):
        return known
    return vr


def _fits(tag: int, vr: bytes) -> bool:
    """Whether the file's VR is of the kind that the dictionary gives: text, bytes or sequence."""
    expected = dictionary_vr(tag)
    if expected == b"UN":
        return True
    for kind in (TEXT_VRS, _BINARY_VRS):
        if expected in kind:
            return vr in kind
    return vr == expected


def _listed(action: Action, basic: Action, tag: int, vr: bytes) -> Rule:
    if tag == PATIENT_NAME:
        return Rule("D", treatments.patient_name)
    if tag == PATIENT_ID:
        return Rule("D", treatments.patient_id)
    if action == "X":
        return REMOVED
    if vr == b"SQ":
        if action == "Z":
            return Rule(action, treatments.empty)
        return Rule(action, treatments.keep, "dummy" if action == "D" else "clean")
    if action == "Z":
        return Rule(action, treatments.empty)
    if action == "U":
        return Rule(action, treatments.new_uid)
    if action == "D":
        return Rule(action, treatments.dummy(vr))
    if action == "K":
        return Rule(action, _kept(tag, vr))
    return _cleaned(basic, tag, vr)


def _kept(tag: int, vr: bytes) -> Treatment:
    """An option keeps it; ages over 89, and words that are none of their attribute, still go."""
    if tag == ETHNIC_GROUP:
        return treatments.ethnic_group
    if vr == b"AS":
        return treatments.age
    if vr == b"CS":
        return treatments.code_string
    return treatments.number_string if vr in (b"DS", b"IS") else treatments.keep


def _cleaned(basic: Action, tag: int, vr: bytes) -> Rule:
    """Action C: by the VR. What cannot be cleaned takes the basic action."""
    moved = _MOVED.get(vr)
    if moved is not None:
        return Rule("C", moved)
    if vr == b"UI":
        return Rule("U", treatments.new_uid)
    if vr in TEXT_VRS and vr not in (b"PN", b"AE", b"UR"):
        instead = treatments.DUMMY_TEXT if basic == "D" else ""
        return Rule("C", treatments.cleaned(vr, instead))
    return _listed(basic, basic, tag, vr) if basic != "C" else REMOVED


def _unlisted(profile: Profile, tag: int, vr: bytes, mode: Mode) -> Rule:
    """An attribute that the table does not list stays, unless its VR is one that names people."""
    if vr == b"SQ":
        return Rule("K", treatments.keep, mode)
    if vr in _MOVED:
        if "full_dates" in profile.options:
            return Rule("K", treatments.keep)
        return Rule("C", _MOVED[vr]) if "modified_dates" in profile.options else REMOVED
    if vr == b"UI":
        if tag in policy().classes or "uids" in profile.options:
            return Rule("K", treatments.keep)
        return Rule("U", treatments.new_uid)
    if vr in _BULK_VRS:
        return Rule("K", treatments.keep) if tag in policy().bulk else REMOVED
    if vr in (b"PN", b"AE", b"UR"):
        return REMOVED
    if vr in (b"DS", b"IS"):
        return Rule("K", treatments.number_string)
    if vr == b"AS":
        return Rule("K", treatments.age)
    if vr not in TEXT_VRS:
        return Rule("K", treatments.binary_number)
    return _unlisted_text(tag, vr, mode)


def _unlisted_text(tag: int, vr: bytes, mode: Mode) -> Rule:
    if vr == b"CS":
        return Rule("K", treatments.code_string)
    if tag == SCHEME:
        return Rule("K", treatments.scrubbed(vr))
    if tag in _CODE_VALUES:
        return Rule("K", treatments.code_value)
    if tag == CODE_MEANING:
        return Rule("K", treatments.code_meaning)
    if mode == "dummy":
        return Rule("D", treatments.dummy(vr))
    if vr in _FREE_TEXT or _DESCRIBES.search(keyword_of(tag)):
        # No row tells whether it may be empty, so something always stays.
        return Rule("C", treatments.cleaned(vr, treatments.DUMMY_TEXT))
    return Rule("K", treatments.scrubbed(vr))


_MOVED: dict[bytes, Treatment] = {
    b"DA": treatments.shifted_date,
    b"TM": treatments.shifted_time,
    b"DT": treatments.shifted_date_time,
}


@cache
def rules_of(
    _profile: Profile, _sop_class: str, _within: int, _mode: Mode
) -> dict[tuple[int, bytes], Rule]:
    """Rules found so far for one place; filled by the executor."""
    return {}
