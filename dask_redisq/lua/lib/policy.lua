-- Compile a user's choice among ready tasks (get_task), and ask it.
--
-- The text is compiled by itself, as the body of a function, so that no `end` in it closes anything of
-- ours; what a script can reach besides plain Lua is hidden by locals in front of it, whatever the server
-- has. (Some servers have no setfenv.) Tables of functions are copies: what it writes into them is gone with
-- it, and the server refuses new globals. This keeps mistakes in; who may load scripts needs no policy.
local SAFE = {}
for _, name in ipairs({
  'assert', 'error', 'ipairs', 'next', 'pairs', 'pcall', 'select', 'tonumber', 'tostring', 'type', 'unpack',
}) do
  SAFE[name] = true
end
local LIBRARIES = 'bit, math, string, table'

-- Return the function, or nil and what is wrong with the text.
local function compile_policy(text)
  local hidden = {}
  for name in pairs(_G) do
    local plain = type(name) == 'string' and string.match(name, '^[%a_][%w_]*$')
    if plain and not SAFE[name] then hidden[#hidden + 1] = name end
  end
  -- On one line, for the numbers of the lines, and behind a ';': no text goes on with a list of ours.
  return loadstring('local ' .. table.concat(hidden, ', ') .. '; local candidates, tags, worker, want, '
    .. LIBRARIES .. ' = ...; ' .. text, '=get_task')
end

local function copy_of(library)
  local copy = {}
  for name, thing in pairs(library) do copy[name] = thing end
  return copy
end

-- Ask it; return whether it answered, and the answer, or its error.
local function ask_policy(policy, candidates, tags, worker, want)
  return pcall(policy, candidates, tags, worker, want, copy_of(bit), copy_of(math), copy_of(string), copy_of(table))
end
