"""The classifiers under attack: trained here, public, or custom."""
