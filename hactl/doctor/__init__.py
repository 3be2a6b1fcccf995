"""What may be wrong with a node: facts (``facts``), gathered (``collect``) and judged (``judge``)."""
