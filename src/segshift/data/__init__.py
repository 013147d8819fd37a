"""Domains, views, order and loading: from files on disk to batches."""
