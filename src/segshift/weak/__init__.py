"""Weak labels that people give: tags and points of images, the file that keeps them, and other tools' formats."""

from __future__ import annotations
