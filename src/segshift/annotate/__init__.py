"""A local page on which a person gives images tags and points; it knows nothing of training, and brings no torch."""

from __future__ import annotations
