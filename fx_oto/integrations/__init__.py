"""Callbacks for trainers that users have; each module needs its package, and nothing here is loaded without it."""
