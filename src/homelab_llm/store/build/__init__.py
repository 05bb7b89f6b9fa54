"""Building models: from a ModelSpec or a Modelfile to a model of the store. Nothing is converted here."""
