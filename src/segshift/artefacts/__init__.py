"""What stages write for later stages and for people; one on-disk format each."""
