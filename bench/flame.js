// Draws a CPU profile (node --cpu-prof) as a flame graph: node bench/flame.js in.cpuprofile out.svg [function...]
//
// Each box is a function within its caller, as wide as its share of the time in which the process did anything. Boxes
// of one function within one caller stand together, widest first; what is narrower than two pixels is left out. Named
// functions are the only ones drawn of those that nothing else called: what a start takes is not what requests take.
import { readFileSync, writeFileSync } from 'node:fs';

const WIDTH = 1_200;
const ROW = 17;
const TITLE = 44;
const CHARACTER = 6.6;
/** Who wrote the function. */
const KINDS = [
  {
    name: 'Claviger',
    color: '#f2a65a',
    matches: (url) => url.includes('/dist/') && !url.includes('node_modules'),
  },
  {
    name: 'Fastify',
    color: '#8ecae6',
    matches: (url) => /node_modules\/(fastify|find-my-way|@fastify)\//.test(url),
  },
  { name: 'other packages', color: '#b7b7d7', matches: (url) => url.includes('node_modules') },
  { name: 'Node, V8, kernel', color: '#d9d9d9', matches: () => true },
];

const [input, output, ...tops] = process.argv.slice(2);
if (input === undefined || output === undefined) throw new Error('usage: flame.js in.cpuprofile out.svg');
const profile = JSON.parse(readFileSync(input, 'utf8'));
const nodes = new Map(profile.nodes.map((node) => [node.id, { ...node, selfUs: 0 }]));
profile.samples.forEach((id, index) => {
  nodes.get(id).selfUs += profile.timeDeltas[index];
});

/** Nodes of one function within one caller, as one box with the time of all. */
function merge(siblings) {
  const boxes = new Map();
  for (const { callFrame, selfUs, children = [] } of siblings) {
    const name = callFrame.functionName || '(anonymous)';
    if (name === '(idle)') continue;
    const key = `${name} ${callFrame.url}:${callFrame.lineNumber}`;
    const box = boxes.get(key) ?? { name, ...callFrame, selfUs: 0, within: [] };
    box.selfUs += selfUs;
    box.within.push(...children.map((id) => nodes.get(id)));
    boxes.set(key, box);
  }
  return [...boxes.values()]
    .map((box) => {
      const within = merge(box.within);
      return { ...box, within, us: box.selfUs + within.reduce((sum, { us }) => sum + us, 0) };
    })
    .sort((a, b) => b.us - a.us);
}

const [root] = merge([profile.nodes[0]]);
const within = root.within.filter(({ name }) => tops.length === 0 || tops.includes(name));
const all = { ...root, within, us: within.reduce((sum, { us }) => sum + us, 0) };
let depth = 0;
const drawn = [];

function draw(box, x, level) {
  const width = (box.us / all.us) * WIDTH;
  if (width < 2) return;
  depth = Math.max(depth, level + 1);
  const { color } = KINDS.find(({ matches }) => matches(box.url));
  const place = box.url.replace(/^.*\/(node_modules|dist)\//, '$1/');
  const told = escapeXml(
    `${box.name} ${place}:${box.lineNumber + 1}, ${((box.us / all.us) * 100).toFixed(1)} %`,
  );
  const text = escapeXml(box.name.slice(0, Math.max(0, Math.floor((width - 4) / CHARACTER))));
  const y = TITLE + level * ROW;
  drawn.push(
    `<g><title>${told}</title><rect x="${x.toFixed(1)}" y="${y}" width="${(width - 0.4).toFixed(1)}" height="${ROW - 1}" fill="${color}"/>` +
      `${text.length < 3 ? '' : `<text x="${(x + 2).toFixed(1)}" y="${y + 12}">${text}</text>`}</g>`,
  );
  let at = x;
  for (const inner of box.within) {
    draw(inner, at, level + 1);
    at += (inner.us / all.us) * WIDTH;
  }
}

function escapeXml(text) {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

draw(all, 0, 0);
const legend = KINDS.map(
  ({ name, color }, index) =>
    `<rect x="${8 + index * 160}" y="26" width="12" height="12" fill="${color}"/><text x="${24 + index * 160}" y="36">${name}</text>`,
);
const height = TITLE + depth * ROW + 8;
writeFileSync(
  output,
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="monospace" font-size="11"><title>Flame graph of the server</title>
<rect width="${WIDTH}" height="${height}" fill="#fff"/>
<text x="8" y="16">Time of the server's thread, callers above callees. Node ${process.versions.node}.</text>
${legend.join('\n')}
${drawn.join('\n')}
</svg>
`,
);
