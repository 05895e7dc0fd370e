// The files of the app, so that it starts without a network. Rows and changes are no business of this file: they are in
// the storage of the client.
const CACHE = 'tasks-web'

addEventListener('install', (event) => {
  event.waitUntil(precache().then(() => skipWaiting()))
})

addEventListener('activate', (event) => {
  event.waitUntil(clients.claim())
})

addEventListener('fetch', (event) => {
  const { request } = event
  const { origin, pathname } = new URL(request.url)
  const isFile = request.method === 'GET' && origin === location.origin && !/^\/(api|sse|ws)\b/.test(pathname)
  if (isFile) event.respondWith(answer(request))
})

async function precache() {
  const page = await fetch('/', { cache: 'no-store' })
  const { cache, paths } = await keep(page)
  await cache.addAll(paths)
}

/** Stores the page, and forgets the files of earlier builds, which it does not name. */
async function keep(page) {
  const cache = await caches.open(CACHE)
  const html = await page.clone().text()
  const paths = [...html.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map(([, path]) => path)
  await cache.put('/', page)
  for (const request of await cache.keys()) {
    const { pathname } = new URL(request.url)
    if (pathname !== '/' && !paths.includes(pathname)) await cache.delete(request)
  }
  return { cache, paths }
}

/** The page comes from the network, if there is one: a new build has new names. All other files never change. */
async function answer(request) {
  const cache = await caches.open(CACHE)
  const isPage = request.mode === 'navigate'
  const stored = await cache.match(isPage ? '/' : request)
  if (stored && !isPage) return stored
  try {
    const response = await fetch(request)
    if (response.ok && isPage) await keep(response.clone())
    else if (response.ok) await cache.put(request, response.clone())
    return response
  } catch (error) {
    if (stored) return stored
    throw error
  }
}
