"""Ops and modules of users': they are taught with a rule of one of a few kinds."""

from fx_oto.ops.custom import kinds
from fx_oto.ops.custom.registration import (
    register_leaf,
    register_rule,
    registered_rules,
    temporary_rules,
    unregister_rule,
)

__all__ = ["kinds", "register_leaf", "register_rule", "registered_rules", "temporary_rules", "unregister_rule"]
