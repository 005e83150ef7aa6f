// CAT-Seg in a browser: words are encoded here, and pictures are segmented here.
// The files are those of export.py; `ort` is onnxruntime-web.

/** Load model, text encoder and tokenizer from a folder. */
export async function load(ort, folder) {
  const [about, merges, ...networks] = await Promise.all([
    file(`${folder}/web.json`).then((found) => found.json()),
    file(`${folder}/merges.txt.gz`).then(unzipped),
    ...["model", "text"].map((name) => network(ort, `${folder}/${name}.onnx`)),
  ]);
  return new CatSeg(ort, about, new Tokenizer(merges), ...networks);
}

async function file(address) {
  const found = await fetch(address);
  if (!found.ok) throw new Error(`${address}: ${found.status}; run export.py first`);
  return found;
}

async function network(ort, address) {
  return ort.InferenceSession.create(await (await file(address)).arrayBuffer());
}

function unzipped(response) {
  const stream = response.body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

export class CatSeg {
  constructor(ort, about, tokenizer, network, encoder) {
    Object.assign(this, { ort, about, tokenizer, network, encoder });
    this.features = new Map(); // of the names that were asked for: P x D numbers
  }

  /** Encode classes, of which each is a list of synonyms, to a tensor of (T, P, D). */
  async encode(classes) {
    const { templates, synonyms } = this.about;
    const used = classes.map((names) => (synonyms === "first" ? names.slice(0, 1) : names));
    const fresh = [...new Set(used.flat())].filter((name) => !this.features.has(name));
    if (fresh.length) {
      const texts = fresh.flatMap((name) => templates.map((one) => one.replace("{}", () => name)));
      const rows = texts.map((text) => this.tokenizer.encode(text, this.about.context));
      const length = Math.max(...rows.map((row) => row.length));
      const tokens = new Int32Array(rows.length * length);
      rows.forEach((row, i) => tokens.set(row, i * length));
      const given = new this.ort.Tensor("int32", tokens, [rows.length, length]);
      const { features } = await this.encoder.run({ tokens: given });
      const size = features.data.length / fresh.length;
      fresh.forEach((name, i) =>
        this.features.set(name, features.data.slice(i * size, (i + 1) * size)),
      );
    }
    const [P, T] = [templates.length, used.length];
    const D = this.features.get(used[0][0]).length / P;
    const text = new Float32Array(T * P * D);
    used.forEach((names, t) => {
      for (let p = 0; p < P; p++) { // the mean of the synonyms, of unit length
        const sum = text.subarray((t * P + p) * D, (t * P + p + 1) * D);
        for (const name of names) sum.forEach((_, d) => (sum[d] += this.features.get(name)[p * D + d]));
        const norm = Math.hypot(...sum);
        sum.forEach((_, d) => (sum[d] /= norm));
      }
    });
    return new this.ort.Tensor("float32", text, [T, P, D]);
  }

  /**
   * Segment a canvas.
   *
   * Returns the index of the best class of each of its pixels, -1 below the model's threshold,
   * and that class's probability.
   */
  async segment(canvas, classes) {
    const text = await this.encode(classes);
    const { logits } = await this.network.run({ images: this.seen(canvas), text });
    const [, T, h, w] = logits.dims;
    const maps = logits.data.map((x) => 1 / (1 + Math.exp(-x)));
    const { width, height } = canvas;
    const least = this.about.threshold;
    const labels = new Int16Array(width * height).fill(-1);
    const scores = new Float32Array(width * height);
    const [columns, rows] = [between(w, width), between(h, height)];
    for (let y = 0, at = 0; y < height; y++) {
      const [top, bottom, down] = rows[y];
      for (let x = 0; x < width; x++, at++) {
        const [left, right, along] = columns[x];
        for (let t = 0; t < T; t++) {
          const a = (t * h + top) * w, b = (t * h + bottom) * w;
          const above = maps[a + left] * (1 - along) + maps[a + right] * along;
          const below = maps[b + left] * (1 - along) + maps[b + right] * along;
          const p = above * (1 - down) + below * down;
          if (p > scores[at]) {
            scores[at] = p;
            if (p >= least) labels[at] = t;
          }
        }
      }
    }
    return { labels, scores };
  }

  /** What the network sees of a canvas: (1, 3, h, w), RGB in 0 to 255. */
  seen(canvas) {
    const { min_size, max_size } = this.about;
    const sides = [canvas.width, canvas.height];
    const scale = Math.min(min_size / Math.min(...sides), max_size / Math.max(...sides));
    const [w, h] = sides.map((side) => Math.max(1, Math.floor(side * scale + 0.5)));
    const context = new OffscreenCanvas(w, h).getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, 0, 0, w, h);
    const pixels = context.getImageData(0, 0, w, h).data;
    const images = Float32Array.from({ length: 3 * h * w }, (_, i) =>
      pixels[4 * (i % (h * w)) + Math.floor(i / (h * w))]);
    return new this.ort.Tensor("float32", images, [1, 3, h, w]);
  }
}

/** For each place of a resized side: its neighbours, and how far it is from the first. */
function between(here, out) {
  return Array.from({ length: out }, (_, i) => {
    const at = Math.min(Math.max(((i + 0.5) * here) / out - 0.5, 0), here - 1);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, here - 1), at - low];
  });
}

/** CLIP's byte pair encoding. */
export class Tokenizer {
  constructor(merges) {
    const pairs = merges.split("\n").slice(1, 49152 - 256 - 2 + 1);
    const printable = [[33, 126], [161, 172], [174, 255]].flatMap(([a, b]) =>
      Array.from({ length: b - a + 1 }, (_, i) => a + i));
    const others = Array.from({ length: 256 }, (_, i) => i).filter((i) => !printable.includes(i));
    const signs = [...printable, ...others.map((_, i) => 256 + i)];
    const letters = signs.map((code) => String.fromCharCode(code));
    this.letters = new Map([...printable, ...others].map((byte, i) => [byte, letters[i]]));
    this.ranks = new Map(pairs.map((pair, i) => [pair, i]));
    const pieces = [...letters, ...letters.map((l) => `${l}</w>`)];
    pieces.push(...pairs.map((pair) => pair.replace(" ", "")), "<start_of_text>", "<end_of_text>");
    this.numbers = new Map(pieces.map((piece, i) => [piece, i]));
    this.ends = [pieces.length - 2, pieces.length - 1];
  }

  /** Numbers of a text, between start and end, at most `length` of them. */
  encode(text, length = 77) {
    const words = text.trim().replace(/\s+/g, " ").toLowerCase()
      .match(/'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu) ?? [];
    const numbers = words.flatMap((word) => this.pieces(word).map((p) => this.numbers.get(p)));
    return [this.ends[0], ...numbers.slice(0, length - 2), this.ends[1]];
  }

  /** Join the two neighbours that come first in the merges, until none do. */
  pieces(word) {
    const pieces = [...new TextEncoder().encode(word)].map((byte) => this.letters.get(byte));
    pieces.push(`${pieces.pop()}</w>`);
    for (;;) {
      const ranks = pieces.slice(1).map((next, i) => this.ranks.get(`${pieces[i]} ${next}`) ?? Infinity);
      const best = Math.min(...ranks);
      if (best === Infinity) return pieces;
      const [first, second] = [pieces[ranks.indexOf(best)], pieces[ranks.indexOf(best) + 1]];
      for (let i = 0; i < pieces.length - 1; i++)
        if (pieces[i] === first && pieces[i + 1] === second) pieces.splice(i, 2, first + second);
    }
  }
}
