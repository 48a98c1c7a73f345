"""Maps and steering vectors in the formats of other tools: one file for each format."""
