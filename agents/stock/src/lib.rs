//! Four document agents that do real work offline, or through any OpenAI-compatible endpoint.
