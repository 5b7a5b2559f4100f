"""From loads and topology to plans: pure functions, arrays in, arrays out."""

if __name__ != "foremoe.planner":
    raise ImportError("import foremoe.planner, not planner")
