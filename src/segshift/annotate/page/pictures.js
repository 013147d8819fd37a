// The pictures, fetched ahead of time so that the next image is there at once.

const KEPT = 6;

export class Pictures {
  constructor() {
    this.urls = new Map(); // image → promise of {url (of a blob), file (its version)}, the latest asked for last
  }

  // The picture of an image, fetched anew if its file is another one by now.
  async current(image, file) {
    const known = await this.get(image);
    if (known.file === file) return known;
    this.urls.delete(image);
    return this.get(image);
  }

  get(image) {
    const known = this.urls.get(image) ?? this.fetch(image);
    this.urls.delete(image);
    this.urls.set(image, known);
    known.catch(() => this.urls.delete(image)); // asked for again the next time
    while (this.urls.size > KEPT) {
      const [oldest, url] = this.urls.entries().next().value;
      this.urls.delete(oldest);
      void url.then((picture) => URL.revokeObjectURL(picture.url), () => undefined);
    }
    return known;
  }

  ahead(images) {
    for (const image of images) if (!this.urls.has(image)) this.get(image).catch(() => undefined);
  }

  async fetch(image) {
    for (;;) {
      const response = await fetch(`api/picture?image=${encodeURIComponent(image)}`).catch(() => null);
      if (response?.ok) return { url: URL.createObjectURL(await response.blob()), file: response.headers.get("etag")?.replaceAll('"', "") };
      if (response) throw new Error((await response.json().catch(() => null))?.found ?? `the server answered ${response.status}`);
      await new Promise((done) => setTimeout(done, 1000)); // it is gone: the page says so meanwhile
    }
  }
}
