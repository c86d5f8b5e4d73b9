"""Questions and answers about regions, as trainers of vision-language models read them: see `styles`."""
