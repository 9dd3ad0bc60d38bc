// The search runs in a worker, which browsers refuse to pages on a disk: there, a hidden frame
// stands in for it.
if (location.protocol === "file:") {
  const load = (page, src) =>
    new Promise((done) => {
      const script = page.createElement("script");
      script.onload = done;
      script.src = src;
      page.body.append(script);
    });

  // By its second name the theme knows that paths are the page's here, not the worker's.
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const page = frame.contentDocument;
      page.open();
      page.write("<body></body>");
      page.close();
      this.room = frame.contentWindow;
      this.room.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.room.importScripts = async (...urls) => {
        for (const each of urls) await load(page, each);
      };
      this.ready = load(page, url);
    }

    async postMessage(data) {
      await this.ready;
      this.room.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
