"""The classifiers under attack: built here, public, or the user's own."""
