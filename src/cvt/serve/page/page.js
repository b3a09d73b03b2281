// The page at /. All text from the server is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const HEAT = [[10, 8, 30], [80, 20, 110], [180, 50, 90], [245, 125, 40], [252, 240, 160]];
const TOP = 5;

let model = null; // what /v1/model tells
let image = null; // the Blob that is shown
let explained = null; // what /v1/explain told of it
let seen = null; // its input, as an image
let turn = 0; // which image the answers are of: late ones are dropped
let stream = null; // the camera's

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key && !/^[\x20-\x7e]+$/.test(key)) { // which no key is, and fetch would throw
    sessionStorage.removeItem("key");
    throw new Refused(401, "That is not the key of this server: a key has no such characters.");
  }
  if (key) headers["X-API-Key"] = key;
  if (body) headers["Content-Type"] = body.type.startsWith("image/") ? body.type : "application/octet-stream";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body });
  } catch {
    throw new Refused(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Refused(answer.status, told?.error?.message ?? `The server answered ${answer.status}.`);
}

function fail(error) {
  $("status").textContent = "";
  $("error").textContent = error.message;
  if (error.status === 401) {
    $("key").hidden = false;
    $("key-value").focus();
  }
}

async function start() {
  try {
    model = await (await ask("/v1/model")).json();
  } catch (error) {
    fail(error);
    return;
  }
  $("key").hidden = true;
  $("error").textContent = "";
  $("model").textContent = `${model.name}, ${model.classes.length} classes, ${model.backend} ${model.precision}`;
  document.title = `CvT: ${model.name}`;
  $("samples").hidden = model.samples.length === 0;
  $("samples").querySelector("ul").replaceChildren(...model.samples.map(sample));
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
}

function sample(name, number) {
  const image = make("img", { src: `/samples/${number}`, alt: "" });
  const button = make("button", { type: "button", title: name }, image);
  button.setAttribute("aria-label", `Try ${name}`);
  button.addEventListener("click", async () => {
    try {
      look(await (await ask(`/samples/${number}`)).blob());
    } catch (error) {
      fail(error);
    }
  });
  return make("li", {}, button);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A new image: its classes first, then where the network looks.
async function look(blob) {
  if (!model) return;
  image = blob;
  const mine = ++turn;
  $("error").textContent = "";
  $("result").hidden = $("see").hidden = true;
  $("status").textContent = "Classifying";
  $("status").classList.remove("unseen");
  try {
    if (blob.size > model.limits.max_body) {
      throw new Refused(413, `This file has ${blob.size.toLocaleString()} bytes, more than the ${model.limits.max_body.toLocaleString()} that the server takes.`);
    }
    const start = performance.now();
    const answer = await (await ask(`/v1/classify?top_k=${Math.min(TOP, model.classes.length)}`, blob)).json();
    const whole = performance.now() - start;
    if (mine !== turn) return;
    showClasses(answer.predictions[0].classes);
    $("latency").textContent = `${(1000 * answer.seconds).toFixed(1)} ms in the server, ${whole.toFixed(1)} ms with the way there and back`;
    $("result").hidden = false;
    if (model.explainable) {
      $("status").textContent = "Looking into it";
      await explain(mine, null);
    }
    if (mine === turn) {
      const [best] = answer.predictions[0].classes;
      $("status").textContent = `${best.name}, ${percent(best.probability)}`; // for who cannot see
      $("status").classList.add("unseen");
    }
  } catch (error) {
    if (mine === turn) fail(error);
  }
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

function showClasses(classes) {
  $("classes").replaceChildren(...classes.map(({ name, probability }) => {
    const fill = make("div");
    fill.style.width = `${100 * probability}%`;
    const bar = make("div", { className: "bar" }, fill);
    bar.setAttribute("aria-hidden", "true");
    return make("li", {}, make("span", { textContent: name }), make("span", { textContent: percent(probability) }), bar);
  }));
}

async function explain(mine, target) {
  const query = target === null ? "" : `?target=${encodeURIComponent(target)}`;
  const told = await (await ask(`/v1/explain${query}`, image)).json();
  const image = new Image();
  image.src = told.input;
  await image.decode();
  if (mine !== turn) return;
  [explained, seen] = [told, image];
  if (target === null) fill();
  $("see").hidden = false;
  draw();
}

// The choices that this model and image have.
function fill() {
  const attention = explained.attention.length > 0;
  for (const label of document.querySelectorAll("fieldset .attention")) label.hidden = !attention;
  if (!attention && /attention|rollout/.test(shown())) $("controls").elements.show.value = "grad_cam";
  const stages = Object.keys(explained.grad_cam);
  options($("stage"), stages.map((stage) => [stage, stage]), stages.at(-1));
  options($("target"), explained.classes.map(({ name, probability }) => [name, `${name} (${percent(probability)})`]), explained.target);
  options($("block"), explained.attention.map((_, i) => [i, i + 1]), explained.attention.length - 1);
  options($("head"), [["mean", "the mean of all"], ...(explained.attention[0] ?? []).map((_, i) => [i, i + 1])], "mean");
  $("tokens").replaceChildren(...explained.tokens.map((src, i) => {
    const image = make("img", { src, alt: `Tokens of stage ${i + 1}` });
    const caption = make("figcaption", { textContent: `Stage ${i + 1}` });
    image.addEventListener("load", () => { caption.textContent += `: ${image.naturalHeight}x${image.naturalWidth}`; });
    return make("figure", {}, image, caption);
  }));
}

function options(select, pairs, chosen) {
  const kept = select.value; // a choice stays from image to image, but for the class
  select.replaceChildren(...pairs.map(([value, textContent]) => make("option", { value, textContent })));
  const keep = select.id !== "target" && pairs.some(([value]) => String(value) === kept);
  select.value = keep ? kept : chosen;
}

const shown = () => $("controls").elements.show.value;

function values() {
  switch (shown()) {
    case "grad_cam": return explained.grad_cam[$("stage").value];
    case "rollout": return explained.rollout;
    case "attention": {
      const heads = explained.attention[$("block").value];
      if ($("head").value !== "mean") return heads[$("head").value];
      return heads[0].map((row, y) => row.map((_, x) => heads.reduce((sum, head) => sum + head[y][x], 0) / heads.length));
    }
    default: return null;
  }
}

function caption() {
  switch (shown()) {
    case "grad_cam": return `Grad-CAM of ${explained.target} in stage ${$("stage").value}, over the image`;
    case "rollout": return "Attention rollout, over the image";
    case "attention": return `Attention of the class token in block ${Number($("block").value) + 1}, head ${$("head").selectedOptions[0].textContent}, over the image`;
    default: return "The image as the network sees it";
  }
}

function draw() {
  for (const line of document.querySelectorAll("#controls .of")) line.hidden = !line.classList.contains(shown());
  const canvas = $("overlay");
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = seen.naturalWidth > 64; // small images keep hard edges
  context.drawImage(seen, 0, 0, canvas.width, canvas.height);
  const map = values();
  if (map) {
    const heat = overlay(map, canvas.width, canvas.height, $("strength").value / 100);
    const layer = make("canvas", { width: canvas.width, height: canvas.height });
    layer.getContext("2d").putImageData(heat, 0, 0);
    context.drawImage(layer, 0, 0);
  }
  canvas.setAttribute("aria-label", caption());
}

// The map from its least to its greatest value as heat, clear where it is least.
function overlay(map, width, height, strength) {
  const image = new ImageData(width, height);
  const flat = map.flat();
  const low = Math.min(...flat);
  const range = Math.max(...flat) - low;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const value = range > 0 ? (between(map, (y + .5) / height, (x + .5) / width) - low) / range : 0;
      image.data.set(colour(value), i);
      image.data[i + 3] = 255 * strength * value;
    }
  }
  return image;
}

// Bilinear between the centres of the map's squares; y and x in [0, 1].
function between(map, y, x) {
  const at = (part, size) => {
    const place = Math.min(Math.max(part * size - .5, 0), size - 1);
    const first = Math.min(Math.floor(place), Math.max(size - 2, 0));
    return [first, Math.min(first + 1, size - 1), place - first];
  };
  const [y0, y1, v] = at(y, map.length);
  const [x0, x1, u] = at(x, map[0].length);
  return (map[y0][x0] * (1 - u) + map[y0][x1] * u) * (1 - v) + (map[y1][x0] * (1 - u) + map[y1][x1] * u) * v;
}

function colour(value) {
  const place = value * (HEAT.length - 1);
  const first = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[first].map((c, i) => c + (HEAT[first + 1][i] - c) * (place - first));
}

async function openCamera() {
  if (!$("live").hidden) return; // a second one would never be stopped
  $("live").hidden = false;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if ($("live").hidden) { // it was closed while the browser asked
      closeCamera();
      return;
    }
    $("video").srcObject = stream;
    await $("video").play();
    $("shoot").focus();
  } catch (error) {
    closeCamera();
    fail(new Error(`The camera cannot be used: ${error.message}`));
  }
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("live").hidden = true;
  $("camera").focus();
}

function shoot() {
  const { videoWidth: width, videoHeight: height } = $("video");
  if (!width) return; // before its first frame
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  closeCamera();
  canvas.toBlob(look, "image/png");
}

function take(files) {
  const file = [...files].find((f) => f.type.startsWith("image/")) ?? files[0];
  if (file) look(file);
  else fail(new Error("That is not a file. Drop or paste an image itself, not its address."));
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) take(target.files);
  target.value = ""; // the same file may be chosen again
});
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.target.id !== "key-value") take(event.clipboardData.files);
});
$("camera").addEventListener("click", openCamera);
$("shoot").addEventListener("click", shoot);
$("stop").addEventListener("click", closeCamera);
$("strength").addEventListener("input", draw);
$("controls").addEventListener("change", async ({ target }) => {
  if (target.id !== "target") {
    draw();
    return;
  }
  $("error").textContent = "";
  try {
    await explain(turn, target.value);
  } catch (error) {
    fail(error);
  }
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-value").value);
  start();
});

{
  const context = $("scale").getContext("2d");
  for (let x = 0; x < 160; x++) {
    context.fillStyle = `rgb(${colour(x / 159).join(" ")})`;
    context.fillRect(x, 0, 1, 12);
  }
}
start();
