"""Rules for users' own ops and modules: a few ready-made kinds, and their registration."""

from fx_oto.ops.custom import kinds
from fx_oto.ops.custom.registration import (
    register_leaf,
    register_rule,
    registered_rules,
    temporary_rules,
    unregister_rule,
)

__all__ = ["kinds", "register_leaf", "register_rule", "registered_rules", "temporary_rules", "unregister_rule"]
