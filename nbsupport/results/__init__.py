"""Tables, claims, figures, the report and the executed notebooks."""
