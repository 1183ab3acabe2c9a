// Serves dynalite on loopback: its own program listens on all addresses. Tables are in memory.
const folder = process.argv[2], port = Number(process.argv[3])
const dynalite = require(require.resolve('dynalite', { paths: [folder] }))
dynalite({ createTableMs: 0 }).listen(port, '127.0.0.1')
