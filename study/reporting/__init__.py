"""Show a study: tables, pictures, pages."""
