"""The dashboard that the API serves at `/`: its source (`source/`, TypeScript) and what Vite built of it (`built/`)."""
