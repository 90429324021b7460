"""Ops that move elements without computing with them."""
