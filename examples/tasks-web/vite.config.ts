import { defineConfig } from 'vite'

/** Where `posduif dev` listens. */
const ENGINE = 'http://127.0.0.1:8080'

// The page and the API have one origin, as behind the proxy of a real site; no setting for other origins is needed.
const proxy = {
  '/api': ENGINE,
  '/sse': ENGINE,
  '/ws': { target: ENGINE, ws: true, rewriteWsOrigin: true },
}

export default defineConfig({
  server: { host: '127.0.0.1', port: 5173, proxy },
  preview: { host: '127.0.0.1', port: 4173, proxy },
  // The client is a link to its folder in this repository, where it has a React for its own tests.
  resolve: { dedupe: ['react', 'react-dom'] },
})
