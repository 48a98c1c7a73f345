"""Maps in the formats of other programs."""
"""Maps and steering vectors in the formats of other tools: one file for each format."""
