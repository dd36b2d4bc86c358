// The search runs in a worker, which browsers do not start for pages from disk (file:). There, a hidden frame
// takes its place. Named in mkdocs.yml as the theme's polyfill, so that none is fetched from elsewhere.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const page = frame.contentWindow
      page.document.open()
      page.document.write("<body></body>")
      page.document.close()
      const load = (path) =>
        new Promise((resolve, reject) => {
          const script = page.document.createElement("script")
          script.src = new URL(path, location).href
          script.onload = resolve
          script.onerror = reject
          page.document.body.append(script)
        })
      page.postMessage = (data) => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      page.importScripts = (...paths) => paths.reduce((before, path) => before.then(() => load(path)), Promise.resolve())
      this.frame = frame
      this.loaded = load(url)
    }
    postMessage(data) {
      const { contentWindow: page } = this.frame
      this.loaded.then(() => page.dispatchEvent(new page.MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
