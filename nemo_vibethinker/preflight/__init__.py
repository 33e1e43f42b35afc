"""Whether machines can do a run: `doctor` asks it of one, the first job of a chain asks it of all its nodes."""
